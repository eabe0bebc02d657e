//! SIGSTOP of a replica inside of a transaction: what it holds is the database's to take.

use std::time::{Duration, Instant};

use citadel_tests::wait;

use super::cluster::{Cluster, FLOWING, name_of};

/// Which one hangs.
const HUNG: usize = 0;

/// The idle transaction of another: the database's limit for that, and time to index.
const INDEXED: Duration = Duration::from_secs(20);

/// A commit of the replica takes for ever, with the head row's lock taken: as on a disk that
/// hangs, or where the statement's last bytes never came.
const HANG: &str = "\
    CREATE TABLE armed (name text); GRANT SELECT ON armed TO citadel; \
    CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
      IF EXISTS (SELECT FROM armed WHERE name = current_setting('application_name')) THEN \
        PERFORM pg_sleep(600); \
      END IF; \
      RETURN NULL; \
    END $$; \
    CREATE TRIGGER hang AFTER INSERT ON entries FOR EACH STATEMENT EXECUTE FUNCTION hang()";

/// Sessions that wait for a lock of one that sleeps in that trigger.
const BLOCKED: &str = "\
    SELECT count(*) FROM pg_stat_activity AS waiting, pg_stat_activity AS hung \
    WHERE hung.wait_event = 'PgSleep' AND hung.pid = ANY(pg_blocking_pids(waiting.pid))";

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stopped_with_the_head_s_lock_in_its_hand_holds_nobody_up() {
    let cluster = Cluster::start("hung").await;
    cluster.postgres.query(HANG).await;
    let arm = format!("INSERT INTO armed VALUES ('{}')", name_of(HUNG));
    for _ in 0..2 {
        cluster.postgres.query(&arm).await;
        // It holds the lock: another waits for it.
        wait::until("it is inside of its transaction", FLOWING, async || {
            (cluster.postgres.query(BLOCKED).await != "0").then_some(())
        })
        .await;
        cluster.cas[HUNG].process().pause();
        let begun = Instant::now();
        assert_ne!(cluster.postgres.query(BLOCKED).await, "0", "it had ended");
        cluster.others_go_on(HUNG).await;
        println!("the others went on after {:?}", begun.elapsed());
        cluster.checkpoint_follows().await;
        cluster.postgres.query("DELETE FROM armed").await;
        cluster.cas[HUNG].process().resume();
        cluster.issues(HUNG, FLOWING).await;
    }
    cluster.finish().await;
}

/// Of its own transactions only the indexer's have more than one statement: a replica that
/// is stopped there leaves a session that is idle, with the lock of the index, until the
/// database ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stopped_between_two_statements_leaves_its_place_to_others() {
    let cluster = Cluster::start("idle").await;
    // It has a transaction's number only once it holds the row's lock.
    let idle = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}' \
         AND state = 'idle in transaction' AND backend_xid IS NOT NULL",
        name_of(HUNG)
    );
    let process = cluster.cas[HUNG].process();
    // At any instant, until it is such a one.
    wait::until(
        "it is stopped inside of a transaction",
        FLOWING,
        async || {
            process.pause();
            // What it had sent is done a moment later.
            if cluster.postgres.query(&idle).await != "0"
                && cluster.postgres.query(&idle).await != "0"
            {
                return Some(());
            }
            process.resume();
            None
        },
    )
    .await;
    let begun = Instant::now();
    let indexed = async || -> u64 {
        let sql = "SELECT indexed FROM index_source";
        cluster.postgres.query(sql).await.parse().expect("a number")
    };
    let before = indexed().await;
    cluster.others_go_on(HUNG).await;
    wait::until("the index grows", INDEXED, async || {
        (indexed().await > before).then_some(())
    })
    .await;
    println!("the index went on after {:?}", begun.elapsed());
    cluster.checkpoint_follows().await;
    process.resume();
    cluster.issues(HUNG, FLOWING).await;
    cluster.finish().await;
}
