//! `kill -9` of replicas and of the database.

use super::cluster::{Cluster, FLOWING, REPLICAS};

/// Each replica so often.
const ROUNDS: usize = 2;

/// The database so often.
const DATABASE: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn replicas_and_the_database_killed_in_turn_leave_one_gapless_log() {
    let mut cluster = Cluster::start("killed").await;
    for number in (0..REPLICAS).cycle().take(ROUNDS * REPLICAS) {
        cluster.cas[number].process().kill().await;
        cluster.others_go_on(number).await;
        // One of the three signs; whoever that was, it is replaced.
        cluster.checkpoint_follows().await;
        cluster.cas[number].start_again().await;
        cluster.issues(number, FLOWING).await;
    }
    for _ in 0..DATABASE {
        cluster.postgres.kill().await;
        cluster.postgres.start_again().await;
        for number in 0..REPLICAS {
            cluster.issues(number, FLOWING).await;
        }
        cluster.checkpoint_follows().await;
    }
    cluster.finish().await;
}
