//! Numbers of pods that may be given as a percentage. Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The number, or the percentage of `of`, rounded up or down. What is no percentage counts as 0.
pub fn scaled(value: &IntOrString, of: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let Some(percent) = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()) else {
                return 0;
            };
            let product = i64::from(of) * percent;
            let pods = if up {
                (product + 99) / 100
            } else {
                product / 100
            };
            i32::try_from(pods).unwrap_or(i32::MAX)
        }
    }
}
