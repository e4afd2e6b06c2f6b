//! Making and changing the schema.
//!
//! A keyspace remembers its migrations in `schema_versions`, one row each, and in static columns of the same partition who
//! migrates and how far that one has come (`beat`). All of it is written conditionally, so that of several processes that
//! start at once one migrates and the others wait. A holder whose beat stands still has died: another takes over, and
//! begins again with the first migration that has not ended. So every statement of a migration must be repeatable.
//!
//! To change the schema, add a [`Migration`] to [`MIGRATIONS`]. A table that is only new needs none.

use std::{collections::BTreeSet, fmt, time::Duration};

use cofactor_store::{Table, tables};
use scylla::{
    client::session::Session,
    response::query_result::QueryRowsResult,
    serialize::row::SerializeRow,
    statement::{Consistency, unprepared::Statement},
    value::{CqlTimestamp, Row},
};
use tokio::time::sleep;

use crate::{
    connect::{Connected, OpenError, connect},
    options::Options,
    schema::{self, VERSIONS},
};

/// A change of the schema.
struct Migration {
    number: i64,
    name: &'static str,
    /// The statements for a keyspace. Repeatable: a process may die between two of them, or before it noted the last.
    statements: fn(&str) -> Vec<String>,
}

/// All of them, in order.
const MIGRATIONS: &[Migration] = &[Migration { number: 1, name: "create the tables", statements: create_tables }];

fn create_tables(keyspace: &str) -> Vec<String> {
    tables::ALL.iter().map(|table| schema::create_table(keyspace, table)).collect()
}

/// The partition of [`VERSIONS`] in which everything stands.
const SCOPE: &str = "cofactor";

/// How often a waiting process looks, and how many looks without a beat mean that the holder died: 60 seconds. A
/// statement takes less, or fails.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOKS_WITHOUT_BEAT_MAX: u32 = 240;

/// How many looks a process waits altogether: 30 minutes.
const LOOKS_MAX: u32 = 7_200;

/// How many looks a table that is listed may take until it can be read: 10 seconds. Servers list a table that another process
/// makes at this moment before they answer for it.
const LISTED_LOOKS_MAX: u32 = 40;

/// How long a statement that changes the schema may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(40);

/// What a call of [`migrate`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The numbers of the migrations applied now.
    pub applied: Vec<i64>,
    /// The names of tables made now because they were declared since the last start, beside those of migrations.
    pub created: Vec<String>,
    /// The number of the schema as it stands.
    pub version: i64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.applied.is_empty() && self.created.is_empty() {
            return write!(f, "the schema was at {} already", self.version);
        }
        write!(f, "the schema is at {}: applied {:?}, created {:?}", self.version, self.applied, self.created)
    }
}

/// Connects, and brings the schema to what this version needs. Any number of processes may do so at once.
///
/// # Errors
/// A sentence that says what to do. What was done stays, and the next call goes on from there.
pub async fn migrate(options: &Options) -> Result<Report, OpenError> {
    migrate_with(&connect(options).await?, options).await
}

/// Connects, and says whether the schema is what this version needs, changing nothing.
///
/// # Errors
/// A sentence that says what to do.
pub async fn check(options: &Options) -> Result<(), OpenError> {
    check_with(&connect(options).await?, options).await
}

pub(crate) async fn migrate_with(connected: &Connected, options: &Options) -> Result<Report, OpenError> {
    let schema = Schema::new(connected, options);
    if !schema.tables().await?.contains(VERSIONS) {
        schema.create_keyspace(options).await?;
        schema.change("creating the table of migrations", &schema::create_versions(schema.keyspace)).await?;
    }
    let state = schema.first_state().await?;
    schema.not_too_new(&state)?;
    let report = if state.pending().next().is_none() && schema.missing().await?.is_empty() {
        Report { version: state.newest(), ..Report::default() }
    } else {
        schema.take_lock().await?;
        let outcome = schema.migrate_locked().await;
        // Whether or not it went well, nobody needs to wait for us; if this fails too they wait a little longer.
        let rest = format!("SET holder = NULL WHERE scope = '{SCOPE}' IF holder = ?");
        if let Err(error) = schema.conditional(&rest, (&schema.holder,)).await {
            tracing::warn!(%error, "could not release the schema's lock; others wait until it is stale");
        }
        outcome?
    };
    schema.claim_datacenter().await?;
    schema.compare().await?;
    // The driver learns where the copies of a new keyspace are.
    let _ = connected.session.refresh_metadata().await;
    Ok(report)
}

pub(crate) async fn check_with(connected: &Connected, options: &Options) -> Result<(), OpenError> {
    let schema = Schema::new(connected, options);
    let not_ready = |what: String| OpenError::SchemaNotReady { keyspace: schema.keyspace.into(), what };
    if !schema.tables().await?.contains(VERSIONS) {
        return Err(not_ready("nothing is there yet".into()));
    }
    let state = schema.state().await?;
    schema.not_too_new(&state)?;
    if let Some(migration) = state.pending().next() {
        return Err(not_ready(format!("migration {} ({}) has not ended", migration.number, migration.name)));
    }
    if let Some(table) = schema.missing().await?.first() {
        return Err(not_ready(format!("the table {} is missing", table.name)));
    }
    schema.same_datacenter(&state)?;
    schema.compare().await
}

/// What `schema_versions` says.
#[derive(Debug, Default)]
struct State {
    begun: BTreeSet<i64>,
    ended: BTreeSet<i64>,
    holder: Option<String>,
    beat: i64,
    datacenter: Option<String>,
}

impl State {
    fn newest(&self) -> i64 {
        self.begun.last().copied().unwrap_or(0)
    }

    fn pending(&self) -> impl Iterator<Item = &'static Migration> {
        MIGRATIONS.iter().filter(|migration| !self.ended.contains(&migration.number))
    }
}

struct Schema<'a> {
    session: &'a Session,
    keyspace: &'a str,
    datacenter: &'a str,
    /// Our name in the lock.
    holder: String,
}

type Outcome<T> = Result<T, OpenError>;

/// A row of `schema_versions` as it is read.
type VersionRow = (Option<i64>, Option<CqlTimestamp>, Option<String>, Option<i64>, Option<String>);

impl<'a> Schema<'a> {
    fn new(connected: &'a Connected, options: &'a Options) -> Self {
        Self {
            session: &connected.session,
            keyspace: &options.keyspace,
            datacenter: &connected.datacenter,
            holder: connected.session.session_id().to_string(),
        }
    }

    async fn ask(
        &self,
        what: &str,
        statement: Statement,
        values: impl SerializeRow,
    ) -> Outcome<Option<QueryRowsResult>> {
        let answer = self.session.query_unpaged(statement, values).await;
        let answer = answer.map_err(|error| failed(what, &error))?;
        if answer.is_rows() {
            answer.into_rows_result().map(Some).map_err(|error| failed(what, &error))
        } else {
            Ok(None)
        }
    }

    /// Runs a statement that changes the schema.
    async fn change(&self, what: &str, text: &str) -> Outcome<()> {
        let mut statement = Statement::new(text);
        statement.set_request_timeout(Some(STATEMENT_TIMEOUT));
        self.ask(what, statement, ()).await.map(drop)
    }

    async fn create_keyspace(&self, options: &Options) -> Outcome<()> {
        let [first, second] = schema::create_keyspace(options);
        if self.change("creating the keyspace", &first).await.is_ok() {
            return Ok(());
        }
        self.change("creating the keyspace", &second).await
    }

    /// The tables of the keyspace.
    async fn tables(&self) -> Outcome<BTreeSet<String>> {
        let what = "reading the list of tables";
        let text = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
        let rows = self.ask(what, Statement::new(text), (self.keyspace,)).await?;
        let names: Vec<(String,)> = collect(what, rows)?;
        Ok(names.into_iter().map(|(name,)| name).collect())
    }

    async fn missing(&self) -> Outcome<Vec<&'static Table>> {
        let there = self.tables().await?;
        Ok(tables::ALL.iter().copied().filter(|table| !there.contains(table.name)).collect())
    }

    async fn state(&self) -> Outcome<State> {
        let what = "reading the schema's version";
        let mut statement = Statement::new(format!(
            "SELECT number, finished_at, holder, beat, datacenter FROM \"{}\".{VERSIONS} WHERE scope = '{SCOPE}'",
            self.keyspace
        ));
        statement.set_consistency(Consistency::LocalSerial);
        let rows: Vec<VersionRow> = collect(what, self.ask(what, statement, ()).await?)?;
        let mut state = State::default();
        for (number, finished_at, holder, beat, datacenter) in rows {
            state.begun.extend(number);
            state.ended.extend(number.filter(|_| finished_at.is_some()));
            state.holder = holder;
            state.beat = beat.unwrap_or(0);
            state.datacenter = datacenter;
        }
        Ok(state)
    }

    /// As [`Self::state`], where the table may have been made a moment ago by a process that starts beside this one.
    async fn first_state(&self) -> Outcome<State> {
        for _ in 0..LISTED_LOOKS_MAX {
            match self.state().await {
                Ok(state) => return Ok(state),
                Err(error) => tracing::debug!(%error, "the table of migrations cannot be read yet"),
            }
            sleep(LOOK_EVERY).await;
        }
        self.state().await
    }

    fn not_too_new(&self, state: &State) -> Outcome<()> {
        let known = MIGRATIONS.last().map_or(0, |migration| migration.number);
        if state.newest() > known {
            return Err(OpenError::SchemaTooNew { keyspace: self.keyspace.into(), found: state.newest(), known });
        }
        Ok(())
    }

    /// Runs a conditional update of the versions' partition; whether it was applied.
    async fn conditional(&self, rest: &str, values: impl SerializeRow) -> Outcome<bool> {
        let what = "writing the schema's version";
        let statement = Statement::new(format!("UPDATE \"{}\".{VERSIONS} {rest}", self.keyspace));
        let answer = self.ask(what, statement, values).await?;
        let rows: Vec<Row> = collect(what, answer)?;
        let applied = rows.first().and_then(|row| row.columns.first().cloned().flatten());
        Ok(applied.and_then(|value| value.as_boolean()).unwrap_or(false))
    }

    async fn take_lock(&self) -> Outcome<()> {
        let mut seen: Option<(String, i64)> = None;
        let mut without_beat = 0;
        for _ in 0..LOOKS_MAX {
            let state = self.state().await?;
            match state.holder {
                Some(holder) if holder == self.holder => return Ok(()),
                None => {
                    let rest = format!("SET holder = ?, beat = ? WHERE scope = '{SCOPE}' IF holder = NULL");
                    self.try_lock(&rest, (&self.holder, state.beat + 1)).await;
                    continue;
                }
                Some(holder) => {
                    let stands = seen.as_ref().is_some_and(|seen| *seen == (holder.clone(), state.beat));
                    without_beat = if stands { without_beat + 1 } else { 0 };
                    if without_beat >= LOOKS_WITHOUT_BEAT_MAX {
                        tracing::warn!(holder, "whoever migrated the schema has stopped; going on in its place");
                        let rest =
                            format!("SET holder = ?, beat = ? WHERE scope = '{SCOPE}' IF holder = ? AND beat = ?");
                        self.try_lock(&rest, (&self.holder, state.beat + 1, &holder, state.beat)).await;
                        without_beat = 0;
                    }
                    seen = Some((holder, state.beat));
                }
            }
            sleep(LOOK_EVERY).await;
        }
        Err(OpenError::MigrationHeld { keyspace: self.keyspace.into() })
    }

    /// Tries to take the lock. The next look says whether it worked, also where the answer was lost.
    async fn try_lock(&self, rest: &str, values: impl SerializeRow) {
        if let Err(error) = self.conditional(rest, values).await {
            tracing::debug!(%error, "no answer about the schema's lock");
            sleep(LOOK_EVERY).await;
        }
    }

    /// Shows that we are alive, or learns that we were taken for dead.
    async fn beat(&self, beat: i64) -> Outcome<()> {
        let rest = format!("SET beat = ? WHERE scope = '{SCOPE}' IF holder = ?");
        self.held(self.conditional(&rest, (beat, &self.holder)).await?)
    }

    fn held(&self, applied: bool) -> Outcome<()> {
        if applied { Ok(()) } else { Err(OpenError::MigrationHeld { keyspace: self.keyspace.into() }) }
    }

    async fn migrate_locked(&self) -> Outcome<Report> {
        let state = self.state().await?;
        self.not_too_new(&state)?;
        let mut report = Report::default();
        let mut beat = state.beat;
        for migration in state.pending() {
            tracing::info!(
                keyspace = self.keyspace,
                number = migration.number,
                name = migration.name,
                "migrating the schema"
            );
            let rest = format!(
                "SET name = ?, started_at = toTimestamp(now()) WHERE scope = '{SCOPE}' AND number = ? IF holder = ?"
            );
            self.held(self.conditional(&rest, (migration.name, migration.number, &self.holder)).await?)?;
            for statement in (migration.statements)(self.keyspace) {
                beat += 1;
                self.beat(beat).await?;
                self.change(migration.name, &statement).await?;
            }
            let rest =
                format!("SET finished_at = toTimestamp(now()) WHERE scope = '{SCOPE}' AND number = ? IF holder = ?");
            self.held(self.conditional(&rest, (migration.number, &self.holder)).await?)?;
            report.applied.push(migration.number);
        }
        for table in self.missing().await? {
            beat += 1;
            self.beat(beat).await?;
            self.change("creating a table", &schema::create_table(self.keyspace, table)).await?;
            report.created.push(table.name.into());
        }
        report.version = self.state().await?.newest();
        Ok(report)
    }

    fn same_datacenter(&self, state: &State) -> Outcome<()> {
        match &state.datacenter {
            Some(stored) if stored != self.datacenter => Err(OpenError::OtherDatacenter {
                keyspace: self.keyspace.into(),
                stored: stored.clone(),
                chosen: self.datacenter.into(),
            }),
            _ => Ok(()),
        }
    }

    /// Notes our datacenter if none is noted, and refuses another.
    async fn claim_datacenter(&self) -> Outcome<()> {
        let state = self.state().await?;
        if state.datacenter.is_none() {
            let rest = format!("SET datacenter = ? WHERE scope = '{SCOPE}' IF datacenter = NULL");
            self.conditional(&rest, (self.datacenter,)).await?;
        }
        self.same_datacenter(&self.state().await?)
    }

    /// Whether the tables are what is declared. Columns beyond those are a newer version's, which may run beside this one.
    async fn compare(&self) -> Outcome<()> {
        let what = "reading the columns of the tables";
        let text =
            "SELECT table_name, column_name, kind, type, position FROM system_schema.columns WHERE keyspace_name = ?";
        let rows = self.ask(what, Statement::new(text), (self.keyspace,)).await?;
        let there: BTreeSet<schema::ColumnFact> = collect(what, rows)?.into_iter().collect();
        for table in tables::ALL {
            if let Some((table, column, kind, cql, _)) = schema::facts(table).difference(&there).next() {
                let what = format!("the table {table} should have the {kind} column {column} of type {cql}");
                return Err(OpenError::SchemaForeign { keyspace: self.keyspace.into(), what });
            }
        }
        Ok(())
    }
}

fn failed(what: &str, error: &impl ToString) -> OpenError {
    OpenError::Statement { what: what.into(), message: error.to_string() }
}

/// All rows of an answer.
fn collect<R>(what: &str, answer: Option<QueryRowsResult>) -> Outcome<Vec<R>>
where
    R: for<'f> scylla::deserialize::row::DeserializeRow<'f, 'f>,
{
    let Some(answer) = answer else { return Ok(Vec::new()) };
    let rows = answer.rows::<R>().map_err(|error| failed(what, &error))?;
    rows.collect::<Result<_, _>>().map_err(|error| failed(what, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_from_one_without_gaps() {
        let numbers: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.number).collect();
        assert_eq!(numbers, (1..=MIGRATIONS.len() as i64).collect::<Vec<_>>());
    }

    #[test]
    fn a_migration_is_pending_until_it_has_ended() {
        let begun = State { begun: [1].into(), ..State::default() };
        assert_eq!(begun.pending().count(), MIGRATIONS.len());
        let ended = State { begun: [1].into(), ended: [1].into(), ..State::default() };
        assert_eq!((ended.pending().count(), ended.newest()), (MIGRATIONS.len() - 1, 1));
    }
}
