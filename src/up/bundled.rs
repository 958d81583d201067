//! The guests that come with the binary, and the mirror map that leads to them by default.

/// Where bundled guests are: `coracle.dev/guests/hello-http`.
const PREFIX: &str = "coracle.dev/guests/";

macro_rules! guests {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../guests/built/", $name, ".wasm")))),*]
    };
}

const GUESTS: &[(&str, &[u8])] = guests![
    "caller",
    "crash",
    "dial",
    "echo",
    "hello-http",
    "hello-http-p3",
    "hog",
    "load-generator",
    "misbehave",
    "once-p3",
    "show",
    "toolbox",
];

/// Stock image names that have a Wasm build among the bundled guests.
const MIRRORS: &[(&str, &str)] = &[
    (
        "gcr.io/google-samples/istio/helloserver:v0.0.1",
        "coracle.dev/guests/hello-http",
    ),
    (
        "gcr.io/google-samples/istio/loadgen:v0.0.1",
        "coracle.dev/guests/load-generator",
    ),
    ("busybox", "coracle.dev/guests/toolbox"),
];

/// Image name and component of every bundled guest.
pub(crate) fn guests() -> Vec<(String, &'static [u8])> {
    GUESTS
        .iter()
        .map(|(name, component)| (format!("{PREFIX}{name}"), *component))
        .collect()
}

/// What `kubectl exec` runs beside a container.
pub(crate) fn toolbox() -> host::Toolbox {
    host::Toolbox {
        component: include_bytes!("../../guests/built/toolbox.wasm"),
        applets: include_str!("../../guests/toolbox/applets.txt"),
    }
}

/// The mirror map that every node begins with; what the user says comes before it.
pub(crate) fn mirrors() -> Vec<(String, String)> {
    MIRRORS
        .iter()
        .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_mirror_leads_to_a_guest() {
        let guests = guests();
        for (_, to) in MIRRORS {
            assert!(guests.iter().any(|(name, _)| name == to), "{to}");
        }
    }
}
