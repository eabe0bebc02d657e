//! The store of a CA to which its test gives none.

use std::path::Path;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use crate::postgres::Postgres;

/// `sqlite` (the default) or `postgres`: which store suites are run on.
const VARIABLE: &str = "CITADEL_TEST_STORE";

/// What `store` is to be: this file, or a database of its own on a server that all of the
/// suite's CAs share.
pub(super) fn fresh(file: &Path) -> Value {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("sqlite") => format!("sqlite:{}", file.display()).into(),
        Ok("postgres") => database(),
        Ok(other) => panic!("{VARIABLE}={other}: neither sqlite nor postgres"),
    }
}

/// On a thread of its own: who starts a CA does not wait asynchronously.
fn database() -> Value {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    let made = std::thread::spawn(|| {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let postgres = SHARED.get_or_init(Postgres::start).await;
            postgres.store_of(&postgres.database().await)
        })
    });
    made.join().expect("a database")
}
