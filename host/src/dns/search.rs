//! Which full names a resolver tries for a name, in order. PURE: search domains and `ndots`.

use crate::network::{DnsPolicy, PodIdentity};

/// More would be an error in the API already.
const SEARCHES: usize = 32;

/// Full names without the final dot. `name` is lower case; a final dot means: just this. `machine` is the node's own list.
pub(crate) fn candidates<'a>(
    pod: &'a PodIdentity,
    domain: &'a str,
    machine: &'a [String],
    name: &'a str,
) -> impl Iterator<Item = String> + 'a {
    let absolute = name.strip_suffix('.');
    let bare = absolute.unwrap_or(name);
    let ndots = usize::from(pod.ndots.unwrap_or(match pod.dns_policy {
        DnsPolicy::ClusterFirst => 5,
        DnsPolicy::Default | DnsPolicy::None => 1,
    }));
    let dots = bare.bytes().filter(|byte| *byte == b'.').count();
    let first = absolute.is_some() || dots >= ndots;
    let searches = (absolute.is_none())
        .then(|| searches(pod, domain, machine))
        .into_iter()
        .flatten()
        .take(SEARCHES)
        .map(move |suffix| format!("{bare}.{suffix}"));
    first
        .then(|| bare.to_owned())
        .into_iter()
        .chain(searches)
        .chain((!first).then(|| bare.to_owned()))
}

/// Those of the cluster, of the node and of the pod, as far as its policy goes.
pub(crate) fn searches<'a>(
    pod: &'a PodIdentity,
    domain: &'a str,
    machine: &'a [String],
) -> impl Iterator<Item = String> + 'a {
    let cluster = (pod.dns_policy == DnsPolicy::ClusterFirst).then(|| {
        [
            format!("{}.svc.{domain}", pod.namespace),
            format!("svc.{domain}"),
            domain.to_owned(),
        ]
    });
    let own = pod
        .searches
        .iter()
        .map(|search| search.to_ascii_lowercase());
    let machine = match pod.dns_policy {
        DnsPolicy::ClusterFirst | DnsPolicy::Default => machine,
        DnsPolicy::None => &[],
    };
    let others = machine.iter().cloned().chain(own);
    cluster.into_iter().flatten().chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pod: &PodIdentity, name: &str, expected: &[&str]) {
        let got: Vec<String> = candidates(pod, "cluster.local", &[], name).collect();
        assert_eq!(got, expected, "{name}");
    }

    #[test]
    fn names_with_few_dots_are_searched_first() {
        let pod = PodIdentity {
            namespace: "shop".to_owned(),
            searches: vec!["corp.example".to_owned()],
            ..PodIdentity::default()
        };
        check(
            &pod,
            "web",
            &[
                "web.shop.svc.cluster.local",
                "web.svc.cluster.local",
                "web.cluster.local",
                "web.corp.example",
                "web",
            ],
        );
        check(&pod, "web.", &["web"]);
        check(
            &pod,
            "a.b.c.d.e.f",
            &[
                "a.b.c.d.e.f",
                "a.b.c.d.e.f.shop.svc.cluster.local",
                "a.b.c.d.e.f.svc.cluster.local",
                "a.b.c.d.e.f.cluster.local",
                "a.b.c.d.e.f.corp.example",
            ],
        );
    }

    #[test]
    fn the_nodes_own_list_is_for_those_who_resolve_as_it_does() {
        let machine = ["lab.example".to_owned()];
        for (dns_policy, expected) in [
            (
                DnsPolicy::ClusterFirst,
                "shop.svc.c svc.c c lab.example own",
            ),
            (DnsPolicy::Default, "lab.example own"),
            (DnsPolicy::None, "own"),
        ] {
            let pod = PodIdentity {
                namespace: "shop".to_owned(),
                searches: vec!["own".to_owned()],
                dns_policy,
                ..PodIdentity::default()
            };
            let got: Vec<String> = searches(&pod, "c", &machine).collect();
            assert_eq!(got.join(" "), expected);
        }
    }

    #[test]
    fn other_policies_search_only_what_they_are_told() {
        let mut pod = PodIdentity {
            namespace: "shop".to_owned(),
            dns_policy: DnsPolicy::Default,
            ..PodIdentity::default()
        };
        check(&pod, "web", &["web"]);
        pod.searches = vec!["corp.example".to_owned()];
        check(&pod, "web", &["web.corp.example", "web"]);
        check(&pod, "web.x", &["web.x", "web.x.corp.example"]);
        pod.dns_policy = DnsPolicy::None;
        pod.searches = vec!["Shop.svc.cluster.local".to_owned()];
        check(&pod, "web", &["web.shop.svc.cluster.local", "web"]);
        check(&pod, "web.x", &["web.x", "web.x.shop.svc.cluster.local"]);
        pod.ndots = Some(2);
        check(&pod, "web.x", &["web.x.shop.svc.cluster.local", "web.x"]);
    }
}
