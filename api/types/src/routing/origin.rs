//! Whose rule a route is: what a route may do depends on the kind of object it was made of. Never decides that itself.

use super::Key;

/// Shown as `Ingress shop/web`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    pub kind: RouteKind,
    pub about: Key,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RouteKind {
    Ingress,
    HttpRoute,
}

// === impl Origin ===

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.about)
    }
}

// === impl RouteKind ===

impl std::fmt::Display for RouteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ingress => "Ingress",
            Self::HttpRoute => "HTTPRoute",
        })
    }
}
