//! What an error of the driver says about what happened.
//!
//! The promise to keep is that of [`StoreError`]: `Unavailable` and `Misuse` say that nothing happened. Where that is not
//! certain, a write is `Unknown`.

use cofactor_store::StoreError;
use scylla::errors::{BadQuery, DbError, ExecutionError, PrepareError, RequestAttemptError};

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// It changes nothing, whatever comes of it.
    Read,
    /// A write without a condition.
    Plain,
    /// A conditional write. Its rounds can fail one by one: even "not enough replicas" may come after it was decided.
    Conditional,
}

impl Call {
    /// The outcome where no clear answer came.
    fn unclear(self, why: &impl ToString) -> StoreError {
        match self {
            Self::Read => StoreError::Unavailable(why.to_string()),
            Self::Plain | Self::Conditional => StoreError::Unknown(why.to_string()),
        }
    }
}

/// Counts it, and says what it means.
pub(crate) fn of_execution(call: Call, error: &ExecutionError) -> StoreError {
    let meaning = match error {
        ExecutionError::BadQuery(bad) => of_bad_query(bad),
        ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) => {
            StoreError::Unavailable(error.to_string())
        }
        ExecutionError::PrepareError(error) => of_prepare(call, error),
        ExecutionError::LastAttemptError(error) => of_attempt(call, error),
        // Timeouts of our own, and whatever a newer driver adds.
        _ => call.unclear(error),
    };
    count(&meaning);
    meaning
}

/// A statement that could not be prepared was not executed.
pub(crate) fn of_prepare(call: Call, error: &PrepareError) -> StoreError {
    match error {
        PrepareError::AllAttemptsFailed { first_attempt } => match of_attempt(call, first_attempt) {
            StoreError::Unknown(why) => StoreError::Unavailable(why),
            other => other,
        },
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn of_bad_query(bad: &BadQuery) -> StoreError {
    match bad {
        BadQuery::ValuesTooLongForKey(..) | BadQuery::TooManyQueriesInBatchStatement(_) => {
            StoreError::TooLarge(bad.to_string())
        }
        _ => StoreError::Misuse(bad.to_string()),
    }
}

fn of_attempt(call: Call, error: &RequestAttemptError) -> StoreError {
    match error {
        RequestAttemptError::SerializationError(_) => StoreError::Misuse(error.to_string()),
        RequestAttemptError::CqlRequestSerialization(_) => StoreError::TooLarge(error.to_string()),
        // Neither was executed: no request was sent, or the server did not know the statement.
        RequestAttemptError::UnableToAllocStreamId
        | RequestAttemptError::RepreparedIdChanged { .. }
        | RequestAttemptError::RepreparedIdMissingInBatch => StoreError::Unavailable(error.to_string()),
        RequestAttemptError::DbError(kind, reason) => of_server(call, kind, reason),
        // The connection broke, or the answer is not one.
        _ => call.unclear(error),
    }
}

/// Words by which the servers refuse what is too large; both have one code for all that is not valid.
const TOO_LARGE: [&str; 3] = ["too large", "too big", "oversized mutation"];

fn of_server(call: Call, kind: &DbError, reason: &str) -> StoreError {
    let why = format!("{kind}: {reason}");
    match kind {
        DbError::Invalid if TOO_LARGE.iter().any(|words| reason.to_lowercase().contains(words)) => {
            StoreError::TooLarge(why)
        }
        DbError::SyntaxError
        | DbError::Invalid
        | DbError::Unauthorized
        | DbError::ConfigError
        | DbError::AlreadyExists { .. }
        | DbError::AuthenticationError
        | DbError::ProtocolError => StoreError::Misuse(why),
        DbError::IsBootstrapping | DbError::RateLimitReached { rejected_by_coordinator: true, .. } => {
            StoreError::Unavailable(why)
        }
        DbError::Unavailable { .. } if call == Call::Plain => StoreError::Unavailable(why),
        _ => call.unclear(&why),
    }
}

/// Makes the failures visible by class.
fn count(error: &StoreError) {
    let class = match error {
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Unknown(_) => "unknown",
        StoreError::Fenced(_) => "fenced",
        StoreError::TooLarge(_) => "too_large",
        StoreError::Corrupt(_) => "corrupt",
        StoreError::Misuse(_) => "misuse",
    };
    metrics::counter!("cofactor_store_cql_failures_total", "class" => class).increment(1);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scylla::errors::WriteType;
    use scylla::statement::Consistency::LocalQuorum;

    use super::*;

    fn of(call: Call, kind: DbError, reason: &str) -> StoreError {
        of_execution(call, &ExecutionError::LastAttemptError(RequestAttemptError::DbError(kind, reason.into())))
    }

    fn cas_timeout() -> DbError {
        DbError::WriteTimeout { consistency: LocalQuorum, received: 1, required: 2, write_type: WriteType::Cas }
    }

    fn too_few() -> DbError {
        DbError::Unavailable { consistency: LocalQuorum, required: 2, alive: 1 }
    }

    #[test]
    fn a_timeout_of_a_write_is_unknown_and_of_a_read_is_not() {
        let own = ExecutionError::RequestTimeout(Duration::from_secs(1));
        for call in [Call::Plain, Call::Conditional] {
            assert!(matches!(of(call, cas_timeout(), ""), StoreError::Unknown(_)));
            assert!(matches!(of_execution(call, &own), StoreError::Unknown(_)));
        }
        assert!(matches!(of(Call::Read, cas_timeout(), ""), StoreError::Unavailable(_)));
        assert!(matches!(of_execution(Call::Read, &own), StoreError::Unavailable(_)));
    }

    #[test]
    fn too_few_replicas_promise_nothing_about_a_conditional_write() {
        assert!(matches!(of(Call::Plain, too_few(), ""), StoreError::Unavailable(_)));
        assert!(matches!(of(Call::Conditional, too_few(), ""), StoreError::Unknown(_)));
    }

    #[test]
    fn what_was_never_sent_did_not_happen() {
        assert!(matches!(of_execution(Call::Conditional, &ExecutionError::EmptyPlan), StoreError::Unavailable(_)));
    }

    #[test]
    fn a_refused_batch_is_too_large_and_a_refused_statement_is_misuse() {
        for words in ["Batch too large", "Request is too big: length 19682205 exceeds maximum allowed length 16777216."]
        {
            assert!(matches!(of(Call::Conditional, DbError::Invalid, words), StoreError::TooLarge(_)), "{words}");
        }
        assert!(matches!(of(Call::Conditional, DbError::Invalid, "Undefined column"), StoreError::Misuse(_)));
    }
}
