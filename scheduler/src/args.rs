//! The flags of this crate.

/// Flags of scheduling and the controllers.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Seed of the choice between equally good nodes; the same seed and the same order of pods give the same placement.
    #[arg(
        long = "scheduler-seed",
        value_name = "NUMBER",
        default_value_t = 0,
        hide = true
    )]
    pub seed: u64,
}
