//! The API server stops, or hangs. What is measured here is time: the suite
//! runs alone.

mod life;
mod local;
mod review;
