//! Nodes of the tree: sorted entries of one level, with the entries of lower levels between them.

use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::{NodeId, StateEntry};

/// A subtree, or nothing.
pub(super) type Link = Option<Arc<Node>>;

/// The highest level. It bounds every recursion in this module, also against keys chosen for their hash.
pub(super) const LEVEL_MAX: u8 = 15;

/// The bits of the key's hash that one level takes: a node has 16 entries on average.
const LEVEL_BITS: u32 = 4;

/// Entries of one level in order; `children[i]` holds the keys before `entries[i]`, the last child those after.
#[derive(Debug)]
pub(super) struct Node {
    level: u8,
    entries: Vec<Arc<StateEntry>>,
    children: Vec<Link>,
    id: OnceLock<NodeId>,
}

/// The level of a key: one for each four leading zero bits of its hash.
pub(super) fn level_of((event_type, state_key): (&str, &str)) -> u8 {
    let mut hasher = Sha256::new();
    hasher.update(event_type.as_bytes());
    hasher.update([0]);
    hasher.update(state_key.as_bytes());
    let hash = hasher.finalize();
    let head = hash.iter().take(8).fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
    // 64 bits give at most level 16, and the highest level is capped below.
    u8::try_from(head.leading_zeros() / LEVEL_BITS).unwrap_or(LEVEL_MAX).min(LEVEL_MAX)
}

impl Node {
    /// A node with `children` one longer than `entries`, or the only child if there is no entry.
    fn link(level: u8, entries: Vec<Arc<StateEntry>>, mut children: Vec<Link>) -> Link {
        if entries.is_empty() {
            return children.pop().flatten();
        }
        Some(Arc::new(Self::new(level, entries, children)))
    }

    pub(super) fn new(level: u8, entries: Vec<Arc<StateEntry>>, children: Vec<Link>) -> Self {
        Self { level, entries, children, id: OnceLock::new() }
    }

    pub(super) fn level(&self) -> u8 {
        self.level
    }

    pub(super) fn entries(&self) -> &[Arc<StateEntry>] {
        &self.entries
    }

    pub(super) fn children(&self) -> &[Link] {
        &self.children
    }

    /// The hash of the encoded node, calculated when it is first asked for.
    pub(super) fn id(&self) -> NodeId {
        *self.id.get_or_init(|| Sha256::digest(self.encode()).into())
    }

    /// Where the key is, or which child would have it.
    fn search(&self, key: (&str, &str)) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.key().cmp(&key))
    }
}

/// Whether both are known to be equal without looking inside.
pub(super) fn same(a: &Link, b: &Link) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            Arc::ptr_eq(a, b) || a.id.get().is_some_and(|a_id| b.id.get().is_some_and(|b_id| a_id == b_id))
        }
        _ => false,
    }
}

pub(super) fn get<'a>(mut link: &'a Link, key: (&str, &str)) -> Option<&'a StateEntry> {
    while let Some(node) = link {
        match node.search(key) {
            Ok(index) => return Some(&node.entries[index]),
            Err(index) => link = &node.children[index],
        }
    }
    None
}

/// The node of `link` at the place where `node` would be if both trees had it.
pub(super) fn find_node<'a>(mut link: &'a Link, node: &Node) -> Option<&'a Arc<Node>> {
    let key = node.entries.first()?.key();
    while let Some(candidate) = link {
        if candidate.level <= node.level {
            return (candidate.level == node.level).then_some(candidate);
        }
        match candidate.search(key) {
            Ok(_) => return None,
            Err(index) => link = &candidate.children[index],
        }
    }
    None
}

/// Takes the parts of a node out, copying only if it is shared.
fn unshare(node: Arc<Node>) -> (u8, Vec<Arc<StateEntry>>, Vec<Link>) {
    match Arc::try_unwrap(node) {
        Ok(node) => (node.level, node.entries, node.children),
        Err(node) => (node.level, node.entries.clone(), node.children.clone()),
    }
}

pub(super) fn insert(link: Link, entry: Arc<StateEntry>, level: u8) -> (Arc<Node>, Option<Arc<StateEntry>>) {
    let Some(node) = link else {
        return (Arc::new(Node::new(level, vec![entry], vec![None, None])), None);
    };
    if level > node.level {
        let (left, right) = split(Some(node), entry.key());
        return (Arc::new(Node::new(level, vec![entry], vec![left, right])), None);
    }
    let place = node.search(entry.key());
    let (node_level, mut entries, mut children) = unshare(node);
    let previous = match place {
        Ok(index) => Some(std::mem::replace(&mut entries[index], entry)),
        Err(index) if level == node_level => {
            let (left, right) = split(children[index].take(), entry.key());
            entries.insert(index, entry);
            children[index] = right;
            children.insert(index, left);
            None
        }
        Err(index) => {
            let (child, previous) = insert(children[index].take(), entry, level);
            children[index] = Some(child);
            previous
        }
    };
    (Arc::new(Node::new(node_level, entries, children)), previous)
}

/// Divides a subtree that does not have the key into what is before it and what is after it.
pub(super) fn split(link: Link, key: (&str, &str)) -> (Link, Link) {
    let Some(node) = link else { return (None, None) };
    let index = node.search(key).unwrap_or_else(|index| index);
    let (level, mut entries, mut children) = unshare(node);
    let right_entries = entries.split_off(index);
    let mut right_children = children.split_off(index + 1);
    let (left_middle, right_middle) = split(children[index].take(), key);
    children[index] = left_middle;
    right_children.insert(0, right_middle);
    (Node::link(level, entries, children), Node::link(level, right_entries, right_children))
}

pub(super) fn remove(link: Link, key: (&str, &str)) -> (Link, Option<Arc<StateEntry>>) {
    let Some(node) = link else { return (None, None) };
    match node.search(key) {
        Ok(index) => {
            let (level, mut entries, mut children) = unshare(node);
            let previous = entries.remove(index);
            let right = children.remove(index + 1);
            children[index] = join(children[index].take(), right);
            (Node::link(level, entries, children), Some(previous))
        }
        Err(index) if get(&node.children[index], key).is_some() => {
            let (level, entries, mut children) = unshare(node);
            let (child, previous) = remove(children[index].take(), key);
            children[index] = child;
            (Node::link(level, entries, children), previous)
        }
        Err(_) => (Some(node), None),
    }
}

/// Joins two subtrees of which every key of the first is before every key of the second.
fn join(left: Link, right: Link) -> Link {
    let (left, right) = match (left, right) {
        (None, link) | (link, None) => return link,
        (Some(left), Some(right)) => (left, right),
    };
    if left.level > right.level {
        let (level, entries, mut children) = unshare(left);
        let last = children.pop().flatten();
        children.push(join(last, Some(right)));
        return Node::link(level, entries, children);
    }
    if left.level < right.level {
        let (level, entries, mut children) = unshare(right);
        children[0] = join(Some(left), children[0].take());
        return Node::link(level, entries, children);
    }
    let (level, mut entries, mut children) = unshare(left);
    let (_, right_entries, mut right_children) = unshare(right);
    let last = children.pop().flatten();
    right_children[0] = join(last, right_children[0].take());
    entries.extend(right_entries);
    children.extend(right_children);
    Node::link(level, entries, children)
}

/// Goes through a tree in order, from a key on.
pub(super) struct Iter<'a> {
    /// Nodes above the next entry, each with the index of its next entry.
    path: Vec<(&'a Node, usize)>,
}

impl<'a> Iter<'a> {
    pub(super) fn new(mut link: &'a Link, from: (&str, &str)) -> Self {
        let mut path = Vec::new();
        while let Some(node) = link {
            match node.search(from) {
                Ok(index) => {
                    path.push((&**node, index));
                    break;
                }
                Err(index) => {
                    path.push((&**node, index));
                    link = &node.children[index];
                }
            }
        }
        Self { path }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a StateEntry;

    fn next(&mut self) -> Option<Self::Item> {
        let (node, index) = loop {
            let (node, index) = self.path.pop()?;
            if index < node.entries.len() {
                break (node, index);
            }
        };
        self.path.push((node, index + 1));
        let mut link = &node.children[index + 1];
        while let Some(child) = link {
            self.path.push((child, 0));
            link = &child.children[0];
        }
        Some(&node.entries[index])
    }
}
