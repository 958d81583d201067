//! `wasi:sockets/ip-name-lookup` 0.2: a name, then one address after the other.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable};

use super::super::View;
use super::SocketResult;
use super::sockets::ip_name_lookup::{Host, HostResolveAddressStream};
use crate::network::{ResolveError, Resolved};

/// Longest name DNS knows, as text.
const LONGEST: usize = 254;

#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub enum Lookup {
    Asking(Pin<Box<dyn Future<Output = Resolved> + Send>>),
    Answered(std::vec::IntoIter<IpAddr>),
    Failed(ResolveError),
}

impl Lookup {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Asking(asking) = self {
            match asking.as_mut().poll(cx) {
                Poll::Ready(Ok(addresses)) => *self = Self::Answered(addresses.into_iter()),
                Poll::Ready(Err(error)) => *self = Self::Failed(error),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

impl Host for View<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<Lookup>> {
        self.table.get(&network)?;
        if name.is_empty() || name.len() > LONGEST {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let network = Arc::clone(&self.sockets.network);
        let asking = Box::pin(async move { network.resolve(&name).await });
        Ok(self.table.push(Lookup::Asking(asking))?)
    }
}

impl HostResolveAddressStream for View<'_> {
    fn resolve_next_address(&mut self, this: Resource<Lookup>) -> SocketResult<Option<IpAddress>> {
        let lookup = self.table.get_mut(&this)?;
        let _ = lookup.poll(&mut Context::from_waker(Waker::noop()));
        match lookup {
            Lookup::Asking(_) => Err(ErrorCode::WouldBlock.into()),
            Lookup::Answered(addresses) => Ok(addresses.next().map(IpAddress::from)),
            Lookup::Failed(ResolveError::NotFound) => Err(ErrorCode::NameUnresolvable.into()),
            Lookup::Failed(ResolveError::Temporary) => {
                Err(ErrorCode::TemporaryResolverFailure.into())
            }
        }
    }

    fn subscribe(&mut self, this: Resource<Lookup>) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Lookup>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}
