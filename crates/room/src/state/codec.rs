//! Stored bytes of nodes and changes.
//!
//! The first byte is the version of the form; old versions must decode for ever. Numbers are LEB128, strings have
//! their length before them, hash-named event ids are stored as their 32 bytes.

use std::{collections::HashMap, sync::Arc};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ruma::{EventId, OwnedEventId};
use sha2::{Digest, Sha256};

use super::{
    KNOWN_TYPES, NodeId, StateChange, StateEntry,
    node::{LEVEL_MAX, Link, Node},
};

const FORM_VERSION: u8 = 1;

/// Event id tags: the text as it is, or a hash in one of the two base64 alphabets.
const ID_TEXT: u8 = 0;
const ID_URL_SAFE: u8 = 1;
const ID_STANDARD: u8 = 2;

/// Change tags.
const CHANGE_SET: u8 = 1;
const CHANGE_REMOVE: u8 = 0;

/// Stored bytes that do not make a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateDecodeError {
    /// A node is not in the store.
    #[error("a node of the state tree is missing")]
    MissingNode(NodeId),
    /// The bytes are cut off, of an unknown form or not consistent.
    #[error("a stored state is malformed: {0}")]
    Malformed(&'static str),
}

impl Node {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORM_VERSION, self.level()];
        put_number(&mut out, self.entries().len() as u64);
        for entry in self.entries() {
            put_entry(&mut out, entry);
        }
        for child in self.children() {
            match child {
                Some(child) => {
                    out.push(1);
                    out.extend(child.id());
                }
                None => out.push(0),
            }
        }
        out
    }
}

/// Encodes changes, to be stored with the state event that made them.
pub fn encode_changes(changes: &[StateChange]) -> Vec<u8> {
    let mut out = vec![FORM_VERSION];
    put_number(&mut out, changes.len() as u64);
    for change in changes {
        match change.after() {
            Some(entry) => {
                out.push(CHANGE_SET);
                put_entry(&mut out, entry);
            }
            None => {
                out.push(CHANGE_REMOVE);
                put_type(&mut out, change.event_type());
                put_string(&mut out, change.state_key());
            }
        }
    }
    out
}

/// Decodes changes. What was there before is not stored, so every change is an addition or a removal whose removed
/// entry has no meaning beyond its type and state key.
///
/// # Errors
///
/// [`StateDecodeError`] if the bytes are malformed.
pub fn decode_changes(bytes: &[u8]) -> Result<Vec<StateChange>, StateDecodeError> {
    let mut input = Input(bytes);
    input.form_version()?;
    let count = input.number()?;
    let mut changes = Vec::new();
    for _ in 0..count {
        changes.push(match input.byte()? {
            CHANGE_SET => StateChange::added(Arc::new(input.entry()?)),
            CHANGE_REMOVE => {
                let (event_type, state_key) = (input.event_type()?, input.string()?);
                let removed = EventId::parse("$removed").map_err(|_| StateDecodeError::Malformed("event id"))?;
                StateChange::removed(Arc::new(StateEntry::new(&event_type, &state_key, removed, 0)))
            }
            _ => return Err(StateDecodeError::Malformed("change tag")),
        });
    }
    input.end()?;
    Ok(changes)
}

/// A node whose children are still only named.
struct Shell {
    level: u8,
    entries: Vec<Arc<StateEntry>>,
    children: Vec<Option<NodeId>>,
}

/// Reads a tree, children before parents, without recursion: the depth of stored bytes is not to be trusted.
pub(super) fn decode_tree(
    root: NodeId,
    fetch: &impl Fn(&NodeId) -> Option<Vec<u8>>,
) -> Result<Arc<Node>, StateDecodeError> {
    let mut done: HashMap<NodeId, Arc<Node>> = HashMap::new();
    let mut pending: Vec<(NodeId, Option<Shell>, u8)> = vec![(root, None, LEVEL_MAX + 1)];
    while let Some((id, shell, level_below)) = pending.pop() {
        if done.contains_key(&id) {
            continue;
        }
        let shell = match shell {
            Some(shell) => shell,
            None => {
                let bytes = fetch(&id).ok_or(StateDecodeError::MissingNode(id))?;
                if NodeId::from(Sha256::digest(&bytes)) != id {
                    return Err(StateDecodeError::Malformed("hash"));
                }
                decode_shell(&bytes)?
            }
        };
        // Levels go down strictly, so there is no cycle.
        if shell.level >= level_below {
            return Err(StateDecodeError::Malformed("level"));
        }
        let missing: Vec<_> = shell.children.iter().flatten().filter(|id| !done.contains_key(*id)).copied().collect();
        if missing.is_empty() {
            let link = |id: &Option<NodeId>| -> Link { id.and_then(|id| done.get(&id).cloned()) };
            let children = shell.children.iter().map(link).collect();
            done.insert(id, Arc::new(Node::new(shell.level, shell.entries, children)));
        } else {
            let level = shell.level;
            pending.push((id, Some(shell), level_below));
            pending.extend(missing.into_iter().map(|id| (id, None, level)));
        }
    }
    done.remove(&root).ok_or(StateDecodeError::MissingNode(root))
}

fn decode_shell(bytes: &[u8]) -> Result<Shell, StateDecodeError> {
    let mut input = Input(bytes);
    input.form_version()?;
    let level = input.byte()?;
    let count = input.number()?;
    if count == 0 {
        return Err(StateDecodeError::Malformed("node without entries"));
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(Arc::new(input.entry()?));
    }
    if !entries.is_sorted_by(|a, b| a.compare_key(b).is_lt()) {
        return Err(StateDecodeError::Malformed("entries out of order"));
    }
    let mut children = Vec::new();
    for _ in 0..=count {
        children.push(match input.byte()? {
            0 => None,
            _ => Some(input.take(32)?.try_into().map_err(|_| StateDecodeError::Malformed("node id"))?),
        });
    }
    input.end()?;
    Ok(Shell { level, entries, children })
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend(text.as_bytes());
}

/// Known types by their place plus one; zero stands before a spelled-out type.
fn put_type(out: &mut Vec<u8>, event_type: &str) {
    match KNOWN_TYPES.iter().position(|known| *known == event_type) {
        Some(index) => put_number(out, index as u64 + 1),
        None => {
            out.push(0);
            put_string(out, event_type);
        }
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &StateEntry) {
    put_type(out, entry.event_type());
    put_string(out, entry.state_key());
    put_event_id(out, entry.event_id());
    put_number(out, entry.position());
}

fn put_event_id(out: &mut Vec<u8>, event_id: &EventId) {
    let text = event_id.as_str();
    let hash = text.strip_prefix('$').unwrap_or_default();
    for (tag, engine) in [(ID_URL_SAFE, &URL_SAFE_NO_PAD), (ID_STANDARD, &STANDARD_NO_PAD)] {
        if let Ok(bytes) = engine.decode(hash)
            && bytes.len() == 32
        {
            out.push(tag);
            out.extend(bytes);
            return;
        }
    }
    out.push(ID_TEXT);
    put_string(out, text);
}

/// The rest of the bytes to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], StateDecodeError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(StateDecodeError::Malformed("cut off"))?;
        self.0 = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, StateDecodeError> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn form_version(&mut self) -> Result<(), StateDecodeError> {
        if self.byte()? == FORM_VERSION { Ok(()) } else { Err(StateDecodeError::Malformed("form version")) }
    }

    fn number(&mut self) -> Result<u64, StateDecodeError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(StateDecodeError::Malformed("number"))
    }

    fn string(&mut self) -> Result<String, StateDecodeError> {
        let len = usize::try_from(self.number()?).map_err(|_| StateDecodeError::Malformed("length"))?;
        let bytes = self.take(len)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| StateDecodeError::Malformed("text"))
    }

    fn event_type(&mut self) -> Result<String, StateDecodeError> {
        match usize::try_from(self.number()?) {
            Ok(0) => self.string(),
            Ok(index) => {
                let known = KNOWN_TYPES.get(index - 1).ok_or(StateDecodeError::Malformed("event type"))?;
                Ok((*known).to_owned())
            }
            Err(_) => Err(StateDecodeError::Malformed("event type")),
        }
    }

    fn event_id(&mut self) -> Result<OwnedEventId, StateDecodeError> {
        let text = match self.byte()? {
            ID_TEXT => self.string()?,
            ID_URL_SAFE => format!("${}", URL_SAFE_NO_PAD.encode(self.take(32)?)),
            ID_STANDARD => format!("${}", STANDARD_NO_PAD.encode(self.take(32)?)),
            _ => return Err(StateDecodeError::Malformed("event id tag")),
        };
        EventId::parse(text).map_err(|_| StateDecodeError::Malformed("event id"))
    }

    fn entry(&mut self) -> Result<StateEntry, StateDecodeError> {
        let (event_type, state_key) = (self.event_type()?, self.string()?);
        Ok(StateEntry::new(&event_type, &state_key, self.event_id()?, self.number()?))
    }

    fn end(&self) -> Result<(), StateDecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(StateDecodeError::Malformed("trailing bytes")) }
    }
}
