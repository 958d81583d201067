//! Leases: a holder, for so many seconds. Written only by those who say which state they replace.

use super::rules::Check::{NotNegative, With};
use super::rules::Rules;
use crate::status::Cause;

pub static LEASE: Rules = Rules {
    checks: &[
        (
            "spec.leaseDurationSeconds",
            With(|path, value, causes| {
                if value.as_i64().is_some_and(|seconds| seconds <= 0) {
                    causes.push(Cause::invalid(path, value, "must be greater than 0"));
                }
            }),
        ),
        ("spec.leaseTransitions", NotNegative),
    ],
    unconditional_update: false,
    create_on_update: true,
    ..Rules::NEW
};
