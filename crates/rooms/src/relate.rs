//! Relations: what an event adds to another, and what its redaction takes back.
//! <https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events>

use std::{collections::BTreeMap, sync::Arc};

use cofactor_entity::{Cx, Read};
use cofactor_room::{Class, Relation};
use cofactor_store::{Direction, Key, RangeRead, key, record, tables};
use cofactor_types::{ErrorClass, Fault, Position};
use cofactor_wire::{
    relation::{Aggregate, Child, Edit, Reference, ThreadRoot},
    room::{EventRecord, InThread, NewEvent, class},
};
use ruma::{OwnedEventId, UserId};

use crate::{entity::Room, receipts::read_event, recent::Known};

/// References that are served with the event that they refer to.
const REFERENCES_MAX: usize = 50;

/// Children looked at for what comes to count when an edit or reply is redacted.
const CHILDREN_MAX: usize = 100;

/// Of a longer key of an annotation, so many bytes and its length say which it is.
const ANNOTATION_KEY_BYTES_MAX: usize = 255;

/// An event's relation to an event of the room, and the aggregates that it changes, by where their events stand.
#[derive(Debug)]
pub(crate) struct Link {
    relation: Relation,
    parent: Known,
    thread: Option<(OwnedEventId, Position)>,
    aggregates: BTreeMap<Position, Aggregate>,
}

/// What must be read first, or what is known.
pub(crate) type Found<T> = Result<T, Vec<Read>>;

impl Room {
    /// The link that a new event makes; `None`: it speaks of no event of this room.
    pub(crate) fn find_link(&self, cx: &Cx, sender: &UserId, event: &NewEvent) -> Result<Found<Option<Link>>, Fault> {
        let relation = Relation::of_content(&event.content).filter(|_| event.state_key.is_none());
        let Some(relation) = relation else { return Ok(Ok(None)) };
        let parent = match self.known(cx, &relation.parent, 0)? {
            Ok(Some(parent)) => parent,
            Ok(None) => return Ok(Ok(None)),
            Err(read) => return Ok(Err(vec![read])),
        };
        // <https://spec.matrix.org/v1.19/client-server-api/#validation-of-mthread-relationships>
        if relation.rel_type == "m.thread" && parent.rel_type.is_some() {
            let message = "a thread cannot begin at an event that has a relation itself";
            return Err(Fault::new(ErrorClass::Invalid, "M_UNKNOWN", message));
        }
        let mut reads = Vec::new();
        if relation.rel_type == "m.annotation" {
            let clustering = annotation(&relation, sender, &event.event_type);
            match cx.row(&tables::ANNOTATIONS, &key![cx.id()], &clustering) {
                Some(Some(_)) => {
                    let message = "you have said that of this event already";
                    return Err(Fault::new(ErrorClass::Invalid, "M_DUPLICATE_ANNOTATION", message));
                }
                Some(None) => {}
                None => reads.push(Read::Row { table: &tables::ANNOTATIONS, partition: key![cx.id()], clustering }),
            }
        }
        let thread = match relation.rel_type.as_str() {
            "m.thread" => Some((relation.parent.clone(), parent.position)),
            // What speaks of a part of a thread is part of it, too.
            _ => parent.thread.as_ref().map(|thread| (thread.root.clone(), thread.root_position)),
        };
        let mut aggregates = BTreeMap::new();
        for position in [Some(parent.position), thread.as_ref().map(|(_, position)| *position)].into_iter().flatten() {
            match aggregate(cx, position)? {
                Ok(aggregate) => drop(aggregates.insert(position, aggregate)),
                Err(read) => reads.push(read),
            }
        }
        Ok(if reads.is_empty() { Ok(Some(Link { relation, parent, thread, aggregates })) } else { Err(reads) })
    }

    /// What is known of an event, which is the `number`th log read of this command if it is not recent.
    pub(crate) fn known(
        &self,
        cx: &Cx,
        event_id: &OwnedEventId,
        number: usize,
    ) -> Result<Result<Option<Known>, Read>, Fault> {
        if let Some(known) = self.recent.get(event_id) {
            return Ok(Ok(Some(known.clone())));
        }
        let position = match self.position_of(cx, event_id) {
            Ok(Some(position)) => position,
            Ok(None) => return Ok(Ok(None)),
            Err(read) => return Ok(Err(read)),
        };
        match cx.log(number) {
            None => Ok(Err(read_event(position))),
            Some(rows) => {
                let event = rows.first().map(|row| record::decode::<EventRecord>(&row.value)).transpose()?;
                Ok(Ok(event.map(|event| Known::of(&event, position))))
            }
        }
    }
}

impl Link {
    /// The place in its thread of an event of this class.
    pub(crate) fn in_thread(&self, class: &Class) -> Option<InThread> {
        let (root, root_position) = self.thread.clone()?;
        let thread = self.aggregates.get(&root_position).and_then(|aggregate| aggregate.thread);
        let mut totals = thread.unwrap_or_default().totals;
        totals.notify += u64::from(class.notify);
        totals.highlight += u64::from(class.highlight_room);
        Some(InThread { root, root_position, totals })
    }

    /// Stages what the event says about its parent and its thread.
    pub(crate) fn stage(mut self, cx: &mut Cx, event: &EventRecord, position: Position) -> Result<(), Fault> {
        let edits = self.edits(event);
        let child = Child {
            event_id: event.event_id.clone(),
            rel_type: self.relation.rel_type.clone(),
            event_type: event.event_type.clone(),
            sender: event.sender.clone(),
            ts: event.ts,
            edits,
        };
        let sub: Arc<str> = self.relation.parent.as_str().into();
        cx.append(class::RELATION, &sub, position, record::encode(&child)?);
        if self.relation.rel_type == "m.annotation" {
            let clustering = annotation(&self.relation, &event.sender, &event.event_type);
            cx.put(&tables::ANNOTATIONS, key![cx.id()], clustering, record::encode(&event.event_id)?);
        }
        if let Some(thread) = &event.thread {
            self.stage_thread(cx, event, thread, position)?;
        }
        let parent = self.aggregates.entry(self.parent.position).or_default();
        if edits {
            parent.edit = latest_edit(parent.edit.take(), edit(&child, position));
        }
        if child.rel_type == "m.reference" && parent.references.len() < REFERENCES_MAX {
            parent.references.push(Reference { position, event_id: child.event_id });
        }
        for (position, aggregate) in &self.aggregates {
            put_aggregate(cx, *position, aggregate)?;
        }
        Ok(())
    }

    fn stage_thread(
        &mut self,
        cx: &mut Cx,
        event: &EventRecord,
        in_thread: &InThread,
        position: Position,
    ) -> Result<(), Fault> {
        let thread = self.aggregates.entry(in_thread.root_position).or_default().thread.get_or_insert_default();
        if thread.active != Position::ZERO {
            cx.remove(class::THREADS, &Arc::from(""), thread.active);
        }
        thread.totals = in_thread.totals;
        thread.active = position;
        if self.relation.rel_type == "m.thread" {
            thread.latest = position;
            thread.count += 1;
            let clustering = key![event.sender.as_str(), in_thread.root_position];
            cx.put(&tables::THREAD_USERS, key![cx.id()], clustering, record::encode(&())?);
        }
        let InThread { root, root_position, totals } = in_thread.clone();
        cx.append(class::THREAD, &Arc::from(root.as_str()), position, record::encode(&totals)?);
        let row = ThreadRoot { root, root_position, totals };
        cx.append(class::THREADS, &Arc::from(""), position, record::encode(&row)?);
        Ok(())
    }

    /// <https://spec.matrix.org/v1.19/client-server-api/#validity-of-replacement-events>
    fn edits(&self, event: &EventRecord) -> bool {
        let parent = &self.parent;
        self.relation.rel_type == "m.replace"
            && parent.rel_type.as_deref() != Some("m.replace")
            && (self.relation.has_new_content || event.event_type == "m.room.encrypted")
            && !parent.is_state
            && parent.sender == event.sender
            && parent.event_type == event.event_type
    }
}

/// What the redaction of an event takes back.
#[derive(Debug)]
pub(crate) struct Unlink {
    relation: Relation,
    parent: Position,
    aggregate: Aggregate,
    children: Vec<(Position, Child)>,
}

impl Room {
    /// The link that `target` made; its parent's children are the log read after that of the target.
    pub(crate) fn find_unlink(&self, cx: &Cx, target: &EventRecord) -> Result<Found<Option<Unlink>>, Fault> {
        let relation = Relation::of_event(&target.json).filter(|_| target.state_key.is_none());
        let Some(relation) = relation else { return Ok(Ok(None)) };
        let parent = match self.position_of(cx, &relation.parent) {
            Ok(Some(parent)) => parent,
            Ok(None) => return Ok(Ok(None)),
            Err(read) => return Ok(Err(vec![read])),
        };
        let aggregate = match aggregate(cx, parent)? {
            Ok(aggregate) => aggregate,
            Err(read) => return Ok(Err(vec![read])),
        };
        let Some(rows) = cx.log(1) else {
            let up_to = Position::MAX;
            let range = RangeRead { after: Position::ZERO, up_to, direction: Direction::Backward, limit: CHILDREN_MAX };
            return Ok(Err(vec![Read::Log { class: class::RELATION, sub: relation.parent.as_str().into(), range }]));
        };
        let children = rows.iter().map(|row| Ok((row.position, record::decode::<Child>(&row.value)?)));
        let children = children.collect::<Result<Vec<_>, Fault>>()?;
        Ok(Ok(Some(Unlink { relation, parent, aggregate, children })))
    }
}

impl Unlink {
    /// Stages that the event at `position` says nothing about its parent any more.
    pub(crate) fn stage(mut self, cx: &mut Cx, target: &EventRecord, position: Position) -> Result<(), Fault> {
        cx.remove(class::RELATION, &Arc::from(self.relation.parent.as_str()), position);
        if self.relation.rel_type == "m.annotation" {
            let clustering = annotation(&self.relation, &target.sender, &target.event_type);
            cx.delete(&tables::ANNOTATIONS, key![cx.id()], clustering);
        }
        self.children.retain(|(at, _)| *at != position);
        let aggregate = &mut self.aggregate;
        if aggregate.edit.as_ref().is_some_and(|edit| edit.position == position) {
            let others = self.children.iter().filter(|(_, child)| child.edits);
            aggregate.edit = others.fold(None, |best, (at, child)| latest_edit(best, edit(child, *at)));
        }
        aggregate.references.retain(|reference| reference.position != position);
        if self.relation.rel_type == "m.thread"
            && let Some(thread) = &mut aggregate.thread
        {
            thread.count = thread.count.saturating_sub(1);
            if thread.latest == position {
                let reply = self.children.iter().find(|(_, child)| child.rel_type == "m.thread");
                thread.latest = reply.map_or(Position::ZERO, |(at, _)| *at);
            }
        }
        put_aggregate(cx, self.parent, &self.aggregate)
    }
}

/// The aggregate of the event at `position`, or the read that finds it.
fn aggregate(cx: &Cx, position: Position) -> Result<Result<Aggregate, Read>, Fault> {
    let (partition, clustering) = (key![cx.id()], key![position]);
    match cx.row(&tables::AGGREGATES, &partition, &clustering) {
        Some(found) => Ok(Ok(found.map(|value| record::decode(&value)).transpose()?.unwrap_or_default())),
        None => Ok(Err(Read::Row { table: &tables::AGGREGATES, partition, clustering })),
    }
}

fn put_aggregate(cx: &mut Cx, position: Position, aggregate: &Aggregate) -> Result<(), Fault> {
    if *aggregate != Aggregate::default() {
        cx.put(&tables::AGGREGATES, key![cx.id()], key![position], record::encode(aggregate)?);
    } else {
        cx.delete(&tables::AGGREGATES, key![cx.id()], key![position]);
    }
    Ok(())
}

fn edit(child: &Child, position: Position) -> Edit {
    Edit { position, ts: child.ts, event_id: child.event_id.clone() }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#server-side-aggregation-of-mreplace-relationships>
fn latest_edit(known: Option<Edit>, edit: Edit) -> Option<Edit> {
    let is_later = |known: &Edit| (known.ts, &known.event_id) > (edit.ts, &edit.event_id);
    Some(known.filter(is_later).unwrap_or(edit))
}

/// The name of an annotation below its parent. <https://spec.matrix.org/v1.19/client-server-api/#avoiding-duplicate-annotations>
fn annotation(relation: &Relation, sender: &UserId, event_type: &str) -> Key {
    let text = relation.key.as_deref().unwrap_or_default();
    let mut end = text.len().min(ANNOTATION_KEY_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let name = format!("{sender}\0{event_type}\0{}\0{}", &text[..end], text.len());
    key![relation.parent.as_str(), name]
}
