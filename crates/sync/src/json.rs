//! A writer of JSON that copies what is JSON already.

/// An object or array being written.
#[derive(Debug, Default)]
pub(crate) struct Json {
    out: Vec<u8>,
    first: bool,
}

impl Json {
    /// An empty object.
    pub(crate) fn object() -> Self {
        Self { out: b"{".to_vec(), first: true }
    }

    /// An empty object, with room for about this many bytes.
    pub(crate) fn object_of(bytes: usize) -> Self {
        let mut out = Vec::with_capacity(bytes);
        out.push(b'{');
        Self { out, first: true }
    }

    /// An empty array.
    pub(crate) fn array() -> Self {
        Self { out: b"[".to_vec(), first: true }
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
    }

    /// Whether nothing was written yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.first
    }

    /// A member whose value is JSON.
    pub(crate) fn member(&mut self, name: &str, value: &[u8]) {
        self.separate();
        string(&mut self.out, name);
        self.out.push(b':');
        self.out.extend_from_slice(value);
    }

    /// A member whose value is a string.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.separate();
        string(&mut self.out, name);
        self.out.push(b':');
        string(&mut self.out, value);
    }

    /// A member whose value is a number.
    pub(crate) fn number(&mut self, name: &str, value: u64) {
        self.member(name, value.to_string().as_bytes());
    }

    /// An element that is JSON.
    pub(crate) fn element(&mut self, value: &[u8]) {
        self.separate();
        self.out.extend_from_slice(value);
    }

    /// An element that is a string.
    pub(crate) fn text_element(&mut self, value: &str) {
        self.separate();
        string(&mut self.out, value);
    }

    /// Makes room for about this many bytes more.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.out.reserve(bytes);
    }

    /// The bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// Begins an object that is a member; what follows goes into it until [`Self::close`].
    pub(crate) fn open(&mut self, name: &str) {
        self.separate();
        string(&mut self.out, name);
        self.out.extend_from_slice(b":{");
        self.first = true;
    }

    /// Ends the object that was begun last.
    pub(crate) fn close(&mut self) {
        self.out.push(b'}');
        self.first = false;
    }

    /// The members of `other`, an object.
    pub(crate) fn members_of(&mut self, other: &Self) {
        if let Some(members) = other.out.get(1..).filter(|members| !members.is_empty()) {
            self.separate();
            self.out.extend_from_slice(members);
        }
    }

    /// An element that `write` appends.
    pub(crate) fn element_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.separate();
        write(&mut self.out);
    }

    /// `{"events": [...]}` under `name`, unless there are none.
    pub(crate) fn events(&mut self, name: &str, events: Json) {
        if !events.is_empty() {
            self.member(name, &wrap_events(events));
        }
    }

    /// The object.
    pub(crate) fn end_object(self) -> Vec<u8> {
        self.finish(b'}')
    }

    /// The array.
    pub(crate) fn end_array(self) -> Vec<u8> {
        self.finish(b']')
    }

    fn finish(mut self, close: u8) -> Vec<u8> {
        self.out.push(close);
        self.out
    }
}

/// `{"events": [...]}`.
pub(crate) fn wrap_events(events: Json) -> Vec<u8> {
    let mut wrapped = Json::object();
    wrapped.member("events", &events.end_array());
    wrapped.end_object()
}

fn string(out: &mut Vec<u8>, text: &str) {
    // Writing into a vector cannot fail.
    let _ = serde_json::to_writer(out, text);
}
