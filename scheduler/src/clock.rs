//! The one place of this crate that reads the wall clock. Deciding code takes `now` instead.

use k8s_openapi::jiff::Timestamp;

#[expect(
    clippy::disallowed_methods,
    reason = "the rim: everything else is given the time"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}
