//! Three CAs on one PostgreSQL under load, of which one or all lose what they stand on: one
//! gapless log, checkpoints that go on from one another, and clients that may try again.

mod callers;
mod cluster;
mod hung;
mod killed;
mod watcher;

use tonic::Code;

/// What a client may be told meanwhile.
const RETRYABLE: [Code; 4] = [
    Code::Unavailable,
    Code::ResourceExhausted,
    Code::DeadlineExceeded,
    Code::Aborted,
];
