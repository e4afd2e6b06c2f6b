//! The store itself.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_store::{
    Append, CasOutcome, Durability, Fence, Key, Mutation, Row, Scan, Store, StoreError, StoreResult, Swap, Table,
    TableKind,
    model::{check, check_append, check_mutation, check_swaps},
};
use cofactor_types::Position;
use futures::{StreamExt, stream};
use scylla::{
    client::session::Session,
    response::{PagingState, PagingStateResponse, query_result::QueryResult},
    statement::{
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};

use crate::{
    answer::{Answer, Told, blob, fence_values, rows_of},
    batches::{self, BATCH_ROWS_MAX, Group},
    connect::{OpenError, connect},
    failure::{Call, of_execution},
    migrate::{check_with, migrate_with},
    options::Options,
    range,
    statements::{Shape, Statements},
    timestamps::Timestamps,
    value::{self, Value},
};

/// Batches of one call that are under way at once.
const WRITES_AT_ONCE: usize = 16;

/// The store on CQL. Clones are the same store.
#[derive(Clone)]
pub struct CqlStore {
    inner: Arc<Inner>,
}

struct Inner {
    session: Session,
    statements: Statements,
    timestamps: Timestamps,
    /// One permit for each request under way; closed with the store.
    requests: Semaphore,
    requests_max: u32,
    batch_bytes_max: usize,
}

impl fmt::Debug for CqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CqlStore").field("statements", &self.inner.statements).finish_non_exhaustive()
    }
}

impl CqlStore {
    /// Connects, brings the schema to what this version needs or checks it, as the options say, and opens the store.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub async fn open(options: &Options) -> Result<Self, OpenError> {
        let connected = connect(options).await?;
        if options.migrate {
            let report = migrate_with(&connected, options).await?;
            tracing::info!(keyspace = options.keyspace, datacenter = connected.datacenter, "{report}");
        } else {
            check_with(&connected, options).await?;
        }
        let statements = Statements::new(&options.keyspace, Duration::from_millis(options.request_timeout_ms));
        statements.prepare_usual(&connected.session).await.map_err(|error| OpenError::Statement {
            what: "preparing the statements".into(),
            message: error.to_string(),
        })?;
        let requests_max = u32::try_from(options.requests_max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Ok(Self {
            inner: Arc::new(Inner {
                session: connected.session,
                statements,
                timestamps: Timestamps::default(),
                requests: Semaphore::new(requests_max as usize),
                requests_max,
                batch_bytes_max: options.batch_bytes_max,
            }),
        })
    }
}

impl Inner {
    /// Room for one request.
    fn room(&self) -> StoreResult<SemaphorePermit<'_>> {
        self.requests.try_acquire().map_err(|error| {
            StoreError::Unavailable(match error {
                TryAcquireError::NoPermits => "too many requests are under way".into(),
                TryAcquireError::Closed => "the store is closed".into(),
            })
        })
    }

    async fn prepared(&self, table: &Table, shape: Shape) -> StoreResult<PreparedStatement> {
        self.statements.get(&self.session, table, shape).await
    }

    async fn run(&self, call: Call, statement: &PreparedStatement, values: &[Value]) -> StoreResult<QueryResult> {
        let _room = self.room()?;
        let answer = self.session.execute_unpaged(statement, values).await;
        answer.map_err(|error| of_execution(call, &error))
    }

    async fn run_batch(&self, call: Call, batch: &Batch, values: &[Vec<Value>]) -> StoreResult<QueryResult> {
        let _room = self.room()?;
        let answer = self.session.batch(batch, values).await;
        answer.map_err(|error| of_execution(call, &error))
    }

    /// The statement and the values that write one row.
    async fn row_write(
        &self,
        table: &Table,
        partition: &[Value],
        clustering: Vec<Value>,
        value: Option<Bytes>,
    ) -> StoreResult<(PreparedStatement, Vec<Value>)> {
        let shape = if value.is_some() { Shape::Put } else { Shape::Delete };
        let values = partition.iter().cloned().chain(clustering).chain(value.map(Value::Blob)).collect();
        Ok((self.prepared(table, shape).await?, values))
    }

    /// Writes a group of a plain table. One row alone is not made a batch, whose size the servers watch.
    async fn write_plain(&self, mut group: Group, timestamp_us: i64) -> StoreResult<()> {
        if group.rows.len() == 1
            && let Some((clustering, value)) = group.rows.pop()
        {
            let (mut statement, bound) = self.row_write(group.table, &group.partition, clustering, value).await?;
            statement.set_timestamp(Some(timestamp_us));
            return self.run(Call::Plain, &statement, &bound).await.map(drop);
        }
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_timestamp(Some(timestamp_us));
        let mut values = Vec::with_capacity(group.rows.len());
        for (clustering, value) in group.rows {
            let (statement, bound) = self.row_write(group.table, &group.partition, clustering, value).await?;
            batch.append_statement(statement);
            values.push(bound);
        }
        self.run_batch(Call::Plain, &batch, &values).await.map(drop)
    }

    /// Rewrites rows of a sealed bucket under the condition that it is sealed, so that the cells of a log see conditional
    /// writes only. No append can touch them any more, and two rewrites of a row are in order as all conditional writes are.
    async fn rewrite_sealed(&self, group: Group) -> StoreResult<()> {
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.append_statement(self.prepared(group.table, Shape::StillSealed).await?);
        let mut values = vec![group.partition.clone()];
        for (clustering, value) in group.rows {
            let (statement, bound) = self.row_write(group.table, &group.partition, clustering, value).await?;
            batch.append_statement(statement);
            values.push(bound);
        }
        if Answer::read(self.run_batch(Call::Conditional, &batch, &values).await?)?.applied()? {
            return Ok(());
        }
        Err(StoreError::Misuse(format!(
            "{}: only rows of a sealed bucket are written without a fence",
            group.table.name
        )))
    }

    async fn write(&self, batch: Vec<Mutation>, timestamp_us: i64) -> StoreResult<()> {
        batch.iter().try_for_each(check_mutation)?;
        let groups = batches::group(batch, self.batch_bytes_max)?;
        let writes = groups.into_iter().map(|group| async move {
            if group.table.kind == TableKind::Log {
                self.rewrite_sealed(group).await
            } else {
                self.write_plain(group, timestamp_us).await
            }
        });
        worst(stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).collect().await)
    }

    async fn append(&self, append: Append) -> StoreResult<()> {
        let partition = value::columns(&append.partition)?;
        value::check_length(&partition)?;
        let rows = batches::last_of_each(append.rows);
        if rows.len() > BATCH_ROWS_MAX {
            return Err(StoreError::TooLarge(format!("{} rows in one append", rows.len())));
        }
        let mut batch = Batch::new(BatchType::Unlogged);
        let mut fence = fence_values(&append.fence)?;
        fence.push(Value::Bool(append.fence.sealed));
        fence.extend(partition.iter().cloned());
        let shape = if let Some(expected) = &append.expected {
            fence.extend(fence_values(expected)?);
            Shape::NextFence
        } else {
            Shape::FirstFence
        };
        batch.append_statement(self.prepared(append.table, shape).await?);
        let mut values = vec![fence];
        let mut bytes = 0;
        for (clustering, value) in rows {
            let clustering = value::columns(&clustering)?;
            value::check_length(&clustering)?;
            bytes += batches::weight(&partition, &clustering, value.as_ref());
            let (statement, bound) = self.row_write(append.table, &partition, clustering, value).await?;
            batch.append_statement(statement);
            values.push(bound);
        }
        if bytes > self.batch_bytes_max {
            return Err(StoreError::TooLarge(format!("{bytes} bytes in one append")));
        }
        self.timestamps.lift(append.fence.last);
        let answer = Answer::read(self.run_batch(Call::Conditional, &batch, &values).await?)?;
        if answer.applied()? {
            return Ok(());
        }
        match answer.fence()? {
            Told::Fence(found) => Err(StoreError::Fenced(found)),
            Told::Nothing => self.fenced(append.table, &partition).await,
        }
    }

    /// The refusal of an append, with the fence that stands if it can be read.
    async fn fenced(&self, table: &'static Table, partition: &[Value]) -> StoreResult<()> {
        Err(StoreError::Fenced(self.fence(table, partition).await.ok().flatten()))
    }

    async fn fence(&self, table: &'static Table, partition: &[Value]) -> StoreResult<Option<Fence>> {
        let statement = self.prepared(table, Shape::Fence).await?;
        let answer = Answer::read(self.run(Call::Read, &statement, partition).await?).map_err(read_again)?;
        match answer.fence()? {
            Told::Fence(found) => Ok(found),
            Told::Nothing => Err(StoreError::Corrupt(format!("{}: half a fence", table.name))),
        }
    }

    /// One value of a row.
    async fn get(&self, table: &'static Table, partition: &Key, clustering: &Key) -> StoreResult<Option<Bytes>> {
        let statement = self.prepared(table, Shape::Get).await?;
        let values = [value::columns(partition)?, value::columns(clustering)?].concat();
        let answer = Answer::read(self.run(Call::Read, &statement, &values).await?).map_err(read_again)?;
        Ok(answer.value("value").flatten().and_then(blob))
    }

    async fn compare_and_set(
        &self,
        table: &'static Table,
        row: Vec<Value>,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> StoreResult<CasOutcome> {
        let (shape, values) = match (expected, new) {
            (expected, Some(new)) => swap(row, expected, new),
            (Some(expected), None) => (Shape::DeleteIfEqual, with(row, expected)),
            (None, None) => return Err(StoreError::Misuse("nothing to set".into())),
        };
        let statement = self.prepared(table, shape).await?;
        let answer = Answer::read(self.run(Call::Conditional, &statement, &values).await?)?;
        if answer.applied()? {
            return Ok(CasOutcome::Applied);
        }
        // Where there is no such row, Cassandra tells no columns at all.
        Ok(CasOutcome::Found(answer.value("value").flatten().and_then(blob)))
    }
}

/// The values, and one more.
fn with(mut values: Vec<Value>, value: Bytes) -> Vec<Value> {
    values.push(Value::Blob(value));
    values
}

/// What sets a row that stands as `expected`.
fn swap(row: Vec<Value>, expected: Option<Bytes>, new: Bytes) -> (Shape, Vec<Value>) {
    match expected {
        None => (Shape::PutIfAbsent, with(row, new)),
        Some(expected) => (Shape::PutIfEqual, with([vec![Value::Blob(new)], row].concat(), expected)),
    }
}

/// A read whose answer is unclear changed nothing.
fn read_again(error: StoreError) -> StoreError {
    match error {
        StoreError::Unknown(why) => StoreError::Unavailable(why),
        other => other,
    }
}

/// What a call of several batches answers. A definite fault of the caller comes first, for repeating does not help; then
/// whatever may have happened.
fn worst(outcomes: Vec<StoreResult<()>>) -> StoreResult<()> {
    let some_applied = outcomes.iter().any(Result::is_ok);
    let rank = |error: &StoreError| match error {
        StoreError::Misuse(_) | StoreError::TooLarge(_) | StoreError::Corrupt(_) | StoreError::Fenced(_) => 2,
        StoreError::Unknown(_) => 1,
        StoreError::Unavailable(_) => 0,
    };
    match outcomes.into_iter().filter_map(Result::err).max_by_key(rank) {
        None => Ok(()),
        Some(StoreError::Unavailable(why)) if some_applied => Err(StoreError::Unknown(why)),
        Some(error) => Err(error),
    }
}

#[async_trait]
impl Store for CqlStore {
    async fn get(&self, table: &'static Table, partition: &Key, clustering: &Key) -> StoreResult<Option<Bytes>> {
        check(table, None, partition, clustering)?;
        self.inner.get(table, partition, clustering).await
    }

    async fn scan(&self, scan: Scan) -> StoreResult<Vec<Row>> {
        let table = scan.table;
        let bounds = [Some(&scan.prefix), scan.after.as_ref(), scan.up_to.as_ref()];
        let fits = bounds.into_iter().flatten().all(|key| Table::fits(table.clustering, key, true));
        if !fits || !Table::fits(table.partition, &scan.partition, false) {
            return Err(StoreError::Misuse(format!("{}: {:?} {:?}", table.name, scan.partition, scan.prefix)));
        }
        let Some(range) = range::of(&scan)?.filter(|_| scan.limit > 0) else { return Ok(Vec::new()) };
        let statement = self.inner.prepared(table, Shape::scan(&range, scan.direction)).await?;
        let mut values = value::columns(&scan.partition)?;
        values.extend([range.lower, range.upper].into_iter().flatten().flat_map(|edge| edge.columns));
        values.push(Value::Int(i32::try_from(scan.limit).unwrap_or(i32::MAX)));
        let _room = self.inner.room()?;
        let mut rows = Vec::new();
        let mut place = PagingState::start();
        loop {
            let page = self.inner.session.execute_single_page(&statement, &values, place).await;
            let (page, next) = page.map_err(|error| of_execution(Call::Read, &error))?;
            rows.extend(rows_of(table, page)?);
            match next {
                PagingStateResponse::HasMorePages { state } => place = state,
                PagingStateResponse::NoMorePages => return Ok(rows),
            }
        }
    }

    /// Every write is durable when it is answered. Rows of one partition go together as long as they fit into a batch;
    /// more than that go in several.
    async fn write(&self, batch: Vec<Mutation>, _durability: Durability) -> StoreResult<()> {
        let timestamp_us = self.inner.timestamps.next();
        self.inner.write(batch, timestamp_us).await
    }

    async fn write_at(&self, batch: Vec<Mutation>, position: Position) -> StoreResult<()> {
        // Positions are microseconds, as timestamps are.
        let timestamp_us = i64::try_from(position.0)
            .map_err(|_| StoreError::Misuse(format!("the position {position} is no timestamp")))?;
        self.inner.write(batch, timestamp_us).await
    }

    async fn append(&self, append: Append) -> StoreResult<()> {
        check_append(&append, self.spans_partitions())?;
        if append.expected.is_some_and(|expected| expected.sealed) {
            // Nothing follows the seal, whoever asks.
            let partition = value::columns(&append.partition)?;
            return self.inner.fenced(append.table, &partition).await;
        }
        self.inner.append(append).await
    }

    async fn fence(&self, table: &'static Table, partition: &Key) -> StoreResult<Option<Fence>> {
        if table.kind != TableKind::Log || !Table::fits(table.partition, partition, false) {
            return Err(StoreError::Misuse(format!("{}: {partition:?} has no fence", table.name)));
        }
        self.inner.fence(table, &value::columns(partition)?).await
    }

    async fn compare_and_set(
        &self,
        table: &'static Table,
        partition: &Key,
        clustering: &Key,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> StoreResult<CasOutcome> {
        check(table, Some(TableKind::Conditional), partition, clustering)?;
        let row = [value::columns(partition)?, value::columns(clustering)?].concat();
        value::check_length(&row)?;
        if new.as_ref().map_or(0, Bytes::len) > self.inner.batch_bytes_max {
            return Err(StoreError::TooLarge(format!("a value in {}", table.name)));
        }
        if expected.is_none() && new.is_none() {
            // Nothing would change; whether it is as expected is all there is to say.
            let found = self.inner.get(table, partition, clustering).await?;
            return Ok(found.map_or(CasOutcome::Applied, |found| CasOutcome::Found(Some(found))));
        }
        self.inner.compare_and_set(table, row, expected, new).await
    }

    async fn compare_and_set_all(&self, table: &'static Table, partition: &Key, swaps: Vec<Swap>) -> StoreResult<bool> {
        check_swaps(table, partition, &swaps)?;
        let partition = value::columns(partition)?;
        let mut batch = Batch::new(BatchType::Unlogged);
        let mut values = Vec::with_capacity(swaps.len());
        let mut bytes = 0;
        for Swap { clustering, expected, new } in swaps {
            let clustering = value::columns(&clustering)?;
            bytes += batches::weight(&partition, &clustering, Some(&new));
            let row = [partition.clone(), clustering].concat();
            value::check_length(&row)?;
            let (shape, bound) = swap(row, expected, new);
            batch.append_statement(self.inner.prepared(table, shape).await?);
            values.push(bound);
        }
        if values.len() > BATCH_ROWS_MAX || bytes > self.inner.batch_bytes_max {
            return Err(StoreError::TooLarge(format!("{} rows of {} to set at once", values.len(), table.name)));
        }
        Answer::read(self.inner.run_batch(Call::Conditional, &batch, &values).await?)?.applied()
    }

    fn spans_partitions(&self) -> bool {
        false
    }

    /// Waits for the requests under way, and refuses new ones.
    async fn close(&self) -> StoreResult<()> {
        // An error says that it is closed already.
        let _all = self.inner.requests.acquire_many(self.inner.requests_max).await;
        self.inner.requests.close();
        Ok(())
    }
}
