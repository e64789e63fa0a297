//! One task per Pod: [`step::step`] decides, operations act, outcomes come back, the status follows.

pub mod state;
pub mod status;
pub mod step;
