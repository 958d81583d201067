//! Words the API server, the scheduler and the host share. A leaf: no I/O, no clock, no task.

pub mod certificate;
pub mod condition;
pub mod duration;
pub mod error;
pub mod listeners;
pub mod node_labels;
pub mod pod;
pub mod quantity;
pub mod routing;
pub mod well_known;
