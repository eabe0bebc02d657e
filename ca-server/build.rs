//! `sqlx::migrate!` embeds the migrations at compile time; cargo has to be told that
//! a new file among them changes the program.

fn main() {
    println!("cargo:rerun-if-changed=../migrations/sqlite");
    println!("cargo:rerun-if-changed=../migrations/postgres");
}
