//! Our own programs, started as a user starts them: from a configuration file.

mod agent;
mod ca;
mod command;
mod config;
mod store;

pub use agent::{Agent, AgentBuilder};
pub use ca::{Ca, CaBuilder};
pub use command::{Finished, citadel, citadel_ca};
pub use config::Settings;
