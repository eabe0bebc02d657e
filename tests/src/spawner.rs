//! Starts children so that none of them outlives the test program.
//!
//! Each child asks the kernel to kill it when its parent dies
//! (`PR_SET_PDEATHSIG`, set by `setpriv`). "Parent" there means the thread that
//! started it, so one thread that never ends starts them all.

use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

type Order = Box<dyn FnOnce() + Send>;

static SPAWNER: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = channel::<Order>();
    thread::Builder::new()
        .name("spawner".into())
        .spawn(move || inbox.iter().for_each(|order| order()))
        .expect("the spawner thread");
    orders
});

/// Starts `command` from the spawner thread.
pub(crate) fn spawn(mut command: Command) -> std::io::Result<Child> {
    let (answer, result) = channel();
    let order = Box::new(move || {
        let _ = answer.send(command.spawn());
    });
    SPAWNER
        .send(order)
        .expect("the spawner thread lives as long as the process");
    result.recv().expect("the spawner thread answers")
}
