//! Who may do what, as a table over a handful of roles and bindings.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::request::ResourcePath;
use crate::store::Index;

fn apply(tables: &mut Tables, resource: &str, namespace: &str, name: &str, object: Option<Value>) {
    let key = Key::new(resource, namespace, name);
    let stored = object.map(|object| Stored {
        key: key.clone(),
        revision: 1,
        created: 1,
        bytes: object.to_string().into(),
        index: Index::default(),
    });
    tables.apply(&key, None, stored.as_ref());
}

fn world() -> Tables {
    let mut tables = Tables::default();
    let reads = json!({"rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]});
    let writes = json!({"rules": [{"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]}]});
    apply(
        &mut tables,
        CLUSTER_ROLES,
        "",
        "reader",
        Some(reads.clone()),
    );
    apply(&mut tables, ROLES, "dev", "writer", Some(writes));
    let all = json!({"roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": [{"kind": "Group", "name": "readers"}]});
    apply(&mut tables, CLUSTER_ROLE_BINDINGS, "", "readers", Some(all));
    let dev = json!({"roleRef": {"kind": "Role", "name": "writer"}, "subjects": [
        {"kind": "User", "name": "bob"}, {"kind": "ServiceAccount", "name": "robot", "namespace": "ci"}]});
    apply(&mut tables, ROLE_BINDINGS, "dev", "writers", Some(dev));
    let one = json!({"roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": [{"kind": "User", "name": "eve"}]});
    apply(&mut tables, ROLE_BINDINGS, "test", "eve", Some(one));
    tables
}

fn ask(tables: &Tables, user: &User, question: &str) -> Decision {
    let words: Vec<&str> = question
        .split(' ')
        .map(|word| if word == "-" { "" } else { word })
        .collect();
    let (resource, subresource) = words[2].split_once('/').unwrap_or((words[2], ""));
    let path = ResourcePath {
        group: words[1].to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        namespace: words[3].to_owned(),
        ..ResourcePath::default()
    };
    let asked = Attributes::Resource {
        verb: words[0],
        path: &path,
    };
    tables.decide(user, &asked, true)
}

#[test]
fn bindings_give_roles_everywhere_or_within_their_namespace() {
    let tables = world();
    let robot = "system:serviceaccount:ci:robot";
    // user, groups, question "verb group resource namespace", the reason when allowed
    for (user, groups, question, allowed) in [
        (
            "ann",
            &["readers"][..],
            "list - pods -",
            r#"RBAC: allowed by ClusterRoleBinding "readers" of ClusterRole "reader" to Group "readers""#,
        ),
        (
            "ann",
            &["readers"],
            "get - pods/log dev",
            r#"RBAC: allowed by ClusterRoleBinding "readers" of ClusterRole "reader" to Group "readers""#,
        ),
        ("ann", &["readers"], "delete - pods dev", ""),
        ("ann", &[], "list - pods dev", ""),
        (
            "bob",
            &[],
            "delete apps deployments dev",
            r#"RBAC: allowed by RoleBinding "writers/dev" of Role "writer" to User "bob""#,
        ),
        ("bob", &[], "delete apps deployments test", ""),
        ("bob", &[], "list apps deployments -", ""),
        (
            robot,
            &[],
            "update apps deployments/scale dev",
            r#"RBAC: allowed by RoleBinding "writers/dev" of Role "writer" to ServiceAccount "robot/ci""#,
        ),
        (
            "system:serviceaccount:dev:robot",
            &[],
            "get apps deployments dev",
            "",
        ),
        (
            "eve",
            &[],
            "list - pods test",
            r#"RBAC: allowed by RoleBinding "eve/test" of ClusterRole "reader" to User "eve""#,
        ),
        ("eve", &[], "list - pods dev", ""),
        // A group is not a user of the same name.
        ("readers", &[], "list - pods -", ""),
    ] {
        let user = User::authenticated(user, groups);
        let decision = ask(&tables, &user, question);
        assert_eq!(
            decision.allowed,
            !allowed.is_empty(),
            "{} {question}",
            user.name
        );
        assert_eq!(decision.reason, allowed, "{question}");
    }
}

#[test]
fn what_is_taken_away_is_gone_and_a_missing_role_is_named() {
    let mut tables = world();
    let eve = User::authenticated("eve", &[]);
    apply(&mut tables, CLUSTER_ROLES, "", "reader", None);
    let decision = ask(&tables, &eve, "list - pods test");
    assert!(!decision.allowed);
    assert_eq!(
        decision.reason,
        r#"RBAC: clusterrole.rbac.authorization.k8s.io "reader" not found"#
    );
    apply(&mut tables, ROLE_BINDINGS, "test", "eve", None);
    assert_eq!(ask(&tables, &eve, "list - pods test").reason, "");
    assert!(!tables.users.contains_key("eve"), "nothing is left of her");
    let bob = User::authenticated("bob", &[]);
    let moved = json!({"roleRef": {"kind": "Role", "name": "writer"}, "subjects": [{"kind": "User", "name": "eve"}]});
    apply(&mut tables, ROLE_BINDINGS, "dev", "writers", Some(moved));
    assert!(!ask(&tables, &bob, "get apps deployments dev").allowed);
    assert!(ask(&tables, &eve, "get apps deployments dev").allowed);
    let _ = Arc::new(tables);
}
