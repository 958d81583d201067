//! Clients of the parts that live in this process: each request goes through the API server's router, without a socket, as
//! the identity its sender has. Decides nothing.

use std::sync::Arc;

use api::auth::User;
use types::well_known::{NAMESPACE_DEFAULT, NAMESPACE_SYSTEM};

/// A Kubernetes client for `user`.
pub(crate) fn client(api: &api::Handle, user: User) -> kube::Client {
    client_of(api.router(), user)
}

fn client_of(router: axum::Router, user: User) -> kube::Client {
    let service = tower::ServiceExt::map_request(
        router,
        move |request: http::Request<kube::client::Body>| {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(user.clone());
            request
        },
    );
    kube::Client::new(service, NAMESPACE_DEFAULT)
}

/// Scheduling and the controllers, each with its own identity. `identity` names this process among several control planes
/// on one store; without one nobody is elected.
pub(crate) fn scheduler(
    api: &api::Handle,
    identity: Option<String>,
    args: scheduler::Args,
) -> scheduler::Config {
    let router = api.router();
    scheduler::Config {
        client: client(api, User::component("system:kube-controller-manager")),
        scheduler_client: client(api, User::component("system:kube-scheduler")),
        controller_client: Arc::new(move |account| {
            client_of(
                router.clone(),
                User::service_account(NAMESPACE_SYSTEM, account),
            )
        }),
        identity,
        args,
    }
}
