//! The networking tutorial that skiff grew from, live: [`course`] says what is typed and what must come out, [`stage`] is
//! where it is typed, [`witness`] looks at the cluster and [`story`] tells what has changed. `commands/tutorial.rs` is who
//! goes through it.

pub mod course;
pub mod stage;
pub mod story;
pub mod witness;
