//! Pods that tests make one at a time: clients that dial once and say what came of it.

use crate::lab::Lab;

/// `dial`: connects, says lines, prints what comes back, ends.
#[derive(Clone, Copy)]
pub(crate) struct Dial<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    /// `role: friend`
    pub(crate) labels: &'a str,
    /// `'HOST:PORT', LINE, …`
    pub(crate) args: &'a str,
    pub(crate) env: &'a str,
}

// === impl Dial ===

impl<'a> Dial<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        Self {
            namespace: "default",
            name,
            node: "h1",
            labels: "",
            args: "",
            env: "",
        }
    }

    pub(crate) fn start(self, lab: &Lab) {
        let Self {
            namespace,
            name,
            node,
            labels,
            args,
            env,
        } = self;
        lab.apply(&format!(
            "apiVersion: v1\nkind: Pod\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
             spec:\n  restartPolicy: Never\n  nodeName: {node}\n  containers:\n  \
             - {{name: main, image: coracle.dev/guests/dial, args: [{args}], env: [{env}]}}\n"
        ));
    }

    /// Starts it and waits until it prints this; what it printed.
    pub(crate) fn hears(self, lab: &Lab, wanted: &str) -> String {
        self.start(lab);
        lab.logs_with(&["-n", self.namespace, self.name], wanted)
    }

    /// Waits for its end; its exit code, and what it printed.
    pub(crate) fn ended(self, lab: &Lab) -> (i64, String) {
        let pod = ["-n", self.namespace, "pod", self.name];
        let code = lab.wait(&format!("{} to end", self.name), &pod, |pod| {
            pod.pointer("/status/containerStatuses/0/state/terminated/exitCode")?
                .as_i64()
        });
        (
            code,
            lab.kubectl(&["logs", "-n", self.namespace, self.name]),
        )
    }
}
