//! One-time keys that were handed out, so that none ever is again.

use std::collections::BTreeMap;

/// Hashes in one row: one more key rewrites its page, and not all that came before it.
const PAGE_LEN: usize = 50;

/// Pages remembered for one device; beyond them the oldest is forgotten.
const PAGES_MAX: usize = 100;

/// The short hashes of one device's handed-out keys, in pages by their number.
#[derive(Debug, Default)]
pub(crate) struct Issued {
    pages: BTreeMap<u64, Vec<u64>>,
}

/// What a new hash changes in the rows.
#[derive(Debug)]
pub(crate) struct Noted<'a> {
    /// The page that it stands in.
    pub(crate) number: u64,
    /// All of that page.
    pub(crate) page: &'a [u64],
    /// A page that goes.
    pub(crate) forgotten: Option<u64>,
}

impl Issued {
    /// Takes a stored page.
    pub(crate) fn put_page(&mut self, number: u64, page: Vec<u64>) {
        self.pages.insert(number, page);
    }

    /// Notes a handed-out key.
    pub(crate) fn note(&mut self, hash: u64) -> Noted<'_> {
        let last = self.pages.last_key_value();
        let number = last.map_or(0, |(number, page)| number + u64::from(page.len() >= PAGE_LEN));
        let is_full = self.pages.len() >= PAGES_MAX && !self.pages.contains_key(&number);
        let forgotten = if is_full { self.pages.pop_first().map(|(number, _)| number) } else { None };
        let page = self.pages.entry(number).or_default();
        page.push(hash);
        Noted { number, page, forgotten }
    }

    /// The numbers of the pages.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.pages.keys().copied()
    }

    /// All hashes.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = u64> {
        self.pages.values().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_rewrites_its_page_alone_and_the_oldest_page_goes_when_there_are_too_many() {
        let mut issued = Issued::default();
        let capacity = (PAGE_LEN * PAGES_MAX) as u64;
        for hash in 0..capacity {
            let noted = issued.note(hash);
            assert_eq!((noted.number, noted.forgotten), (hash / PAGE_LEN as u64, None));
            assert_eq!(noted.page.last(), Some(&hash));
            assert_eq!(noted.page.len() as u64, hash % PAGE_LEN as u64 + 1);
        }
        let noted = issued.note(capacity);
        assert_eq!((noted.number, noted.page, noted.forgotten), (PAGES_MAX as u64, &[capacity][..], Some(0)));
        assert!(issued.hashes().eq(PAGE_LEN as u64..=capacity));
    }

    #[test]
    fn stored_pages_go_on_where_they_end() {
        let mut issued = Issued::default();
        issued.put_page(7, vec![1; PAGE_LEN]);
        issued.put_page(8, vec![2]);
        let noted = issued.note(3);
        assert_eq!((noted.number, noted.page), (8, &[2, 3][..]));
        assert!(issued.numbers().eq([7, 8]));
    }
}
