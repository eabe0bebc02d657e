//! A second server that receives what the first one writes, until it is cut off.

use tokio::process::Command;

use super::{Postgres, START, own, wrapper};
use crate::dir::TestDir;
use crate::parts::part;
use crate::{ports, wait};

impl Postgres {
    /// A streaming standby, asynchronous as it is by default. Returns when it has all that
    /// this server has.
    pub async fn standby(&self) -> Self {
        let dir = TestDir::new("standby");
        own(dir.path());
        let data = dir.join("data");
        let copied = Command::new("setpriv")
            .args(wrapper().iter().skip(1))
            .arg(part("POSTGRES").join("pg_basebackup"))
            // It writes down where it got this from, and so becomes that server's standby.
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["--username=postgres", "-h"])
            .arg(self.dir.path())
            .args(["-p", &self.address.port().to_string(), "-D"])
            .arg(&data)
            .current_dir("/")
            .output()
            .await
            .expect("pg_basebackup");
        assert!(
            copied.status.success(),
            "pg_basebackup: {}",
            String::from_utf8_lossy(&copied.stderr)
        );
        let mut standby = Self {
            dir,
            data,
            address: ports::address(),
            settings: self.settings.clone(),
            env: Vec::new(),
            password: self.password.clone(),
            process: None,
            databases: 0.into(),
        };
        standby.start_again().await;
        let here = self.query("SELECT pg_current_wal_lsn()").await;
        let there = format!("SELECT pg_last_wal_replay_lsn() >= '{here}'");
        wait::until("the standby has caught up", START, async || {
            (standby.query(&there).await == "t").then_some(())
        })
        .await;
        standby
    }

    /// It receives nothing any more: the standby lags from here on.
    pub async fn cut_off(&self) {
        self.query("ALTER SYSTEM SET primary_conninfo = ''").await;
        self.query("SELECT pg_reload_conf()").await;
        wait::until("the standby receives nothing", START, async || {
            let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
            (self.query(receivers).await == "0").then_some(())
        })
        .await;
    }

    /// Takes the place of a primary that is gone, on its address.
    pub async fn take_over(&mut self, primary: &Self) {
        assert!(primary.process.is_none(), "the primary still runs");
        self.stop().await;
        self.address = primary.address;
        self.start_again().await;
        assert_eq!(self.query("SELECT pg_promote()").await, "t");
    }
}
