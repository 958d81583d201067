//! WATCH: what is there (when asked), then every change, as lines of JSON. A line is encoded once for all watchers.
//!
//! ```text
//! initial objects ─► [bookmark "initial-events-end"] ─► events … bookmarks about once a minute ─► clean end
//! ```
//! An event is judged by the selector before and after: entering it is ADDED, leaving it is DELETED.

mod encoder;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use tokio::time::Instant;

use self::encoder::Encoder;
use super::Call;
use super::negotiate::{self, Format, Shape};
use super::reply::Reply;
use crate::cache::{Interest, Watcher};
use crate::codec;
use crate::handlers::Api;
use crate::request::query::ListOptions;
use crate::selector::Selector;
use crate::status::Error;
use crate::store::{self, Event, Revision};

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A last bookmark comes this long before the end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// Events taken from the queue at once.
const BATCH: usize = 128;

/// One open watch.
struct Stream {
    api: Arc<Api>,
    watcher: Watcher,
    selector: Selector,
    encoder: Encoder,
    /// Encoded and not yet sent.
    ready: VecDeque<Bytes>,
    batch: Vec<Arc<Event>>,
    bookmarks: bool,
    next_bookmark: Instant,
    /// Of the last event taken.
    reached: Option<Revision>,
    end: Instant,
    /// Counts this watch among the open ones.
    _open: crate::metrics::Open,
}

pub(super) async fn watch(call: &Call<'_>) -> Result<Reply, Error> {
    if !call.kind.is_stored() {
        return Err(Error::method_not_allowed());
    }
    let mut options = call.query.list_options(true)?;
    // The legacy path of one object: /watch/…/pods/web.
    if !call.path.name.is_empty() {
        let term = format!("metadata.name={}", call.path.name);
        if !options.field_selector.is_empty() {
            options.field_selector.push(',');
        }
        options.field_selector.push_str(&term);
    }
    let selector = call.selector(&options)?;
    let include = negotiate::include(call.query)?;
    let mut encoder = Encoder::new(call.kind, call.accept, include, call.now);
    let content_type = match call.accept.format {
        Format::Json | Format::Yaml => "application/json",
        Format::Protobuf if call.accept.shape == Shape::Object => {
            "application/vnd.kubernetes.protobuf;stream=watch"
        }
        Format::Protobuf => return Err(Error::not_acceptable(&[codec::JSON])),
    };
    let (ready, after) = initial(call, &options, &selector, &mut encoder).await?;
    let watcher = call
        .api
        .cache
        .watch_for(&call.kind.storage, after, interest(call, &selector));
    let watcher = match watcher {
        Ok(watcher) => watcher,
        // Clients understand this as an event; some do not when it is the answer itself.
        Err(store::Error::Compacted { requested, oldest }) => {
            let line = encoder.error(&Error::too_old(requested, oldest));
            return Ok(Reply::stream(content_type, Body::from(line)));
        }
        Err(other) => return Err(other.into()),
    };
    let now = Instant::now();
    let end = now + lifetime(&options);
    let stream = Stream {
        api: Arc::clone(call.api),
        watcher,
        selector,
        encoder,
        ready,
        batch: Vec::new(),
        bookmarks: options.bookmarks,
        next_bookmark: next_bookmark(now, end),
        reached: None,
        end,
        _open: call.api.metrics.watch(call.kind),
    };
    let lines = futures::stream::unfold(stream, |mut stream| async move {
        let line = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), stream))
    });
    Ok(Reply::stream(content_type, Body::from_stream(lines)))
}

/// What is sent before the first change, and the revision changes follow from.
async fn initial(
    call: &Call<'_>,
    options: &ListOptions,
    selector: &Selector,
    encoder: &mut Encoder,
) -> Result<(VecDeque<Bytes>, u64), Error> {
    let cache = &call.api.cache;
    let revision = options.resource_version.unwrap_or(0);
    match options.send_initial_events {
        None if revision > 0 => return Ok((VecDeque::new(), revision)),
        Some(false) if revision > 0 => return Ok((VecDeque::new(), revision)),
        Some(false) => return Ok((VecDeque::new(), cache.revision())),
        Some(true) if revision > 0 => call.api.reach(revision).await?,
        _ => {}
    }
    let snapshot = cache.snapshot(&call.kind.storage);
    let namespace = Some(call.namespace()).filter(|ns| !ns.is_empty());
    let mut ready = VecDeque::new();
    for object in snapshot.page(namespace, None) {
        if selector.matches(object) {
            ready.push_back(encoder.added(object)?);
        }
    }
    if options.send_initial_events == Some(true) && options.bookmarks {
        ready.push_back(encoder.bookmark(snapshot.revision, true));
    }
    Ok((ready, snapshot.revision))
}

/// The part of the selector that spares the watcher from being woken at all.
fn interest(call: &Call<'_>, selector: &Selector) -> Interest {
    let namespace = Some(call.namespace()).filter(|ns| !ns.is_empty());
    let stored = call.api.kinds.stored(&call.kind.storage);
    let names = stored.unwrap_or(call.kind).strategy.field_names();
    let field = names
        .iter()
        .find_map(|name| Some((*name, Box::from(selector.exact(name)?))));
    Interest {
        namespace: namespace.or(selector.only_namespace()).map(Arc::from),
        name: selector.only_name().map(Arc::from),
        field,
    }
}

/// As asked, else half an hour to an hour, so that not all clients come back at once.
fn lifetime(options: &ListOptions) -> Duration {
    match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(86_400)),
        _ => Duration::from_secs(1_800 + rand::random::<u64>() % 1_800),
    }
}

fn next_bookmark(now: Instant, end: Instant) -> Instant {
    let regular = now + BOOKMARK_EVERY;
    match end.checked_sub(BOOKMARK_BEFORE_END) {
        Some(last) if last > now => regular.min(last),
        _ => regular,
    }
}

// === impl Stream ===

impl Stream {
    /// The next line; `None` is the clean end. Cancel safe.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            // Where there is always another event, the timers below never get their turn.
            let now = Instant::now();
            if now >= self.end {
                return None;
            }
            if self.bookmarks && now >= self.next_bookmark {
                self.next_bookmark = next_bookmark(now, self.end);
                if let Some(revision) = self.watcher.progress().or(self.reached) {
                    return Some(self.encoder.bookmark(revision, false));
                }
            }
            tokio::select! {
                biased;
                () = self.api.stopping.cancelled() => return None,
                taken = self.watcher.next_many(&mut self.batch, BATCH) => {
                    if taken == 0 {
                        return None;
                    }
                    self.encode_batch();
                }
                () = tokio::time::sleep_until(self.end) => {}
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {}
            }
        }
    }

    fn encode_batch(&mut self) {
        let mut sent = 0;
        for event in self.batch.drain(..) {
            self.reached = Some(event.revision);
            match self.encoder.event(&event, &self.selector) {
                Ok(Some(line)) => {
                    sent += 1;
                    self.ready.push_back(line);
                }
                Ok(None) => {}
                Err(error) => self.ready.push_back(self.encoder.error(&error)),
            }
        }
        self.api.metrics.watched(sent);
    }
}
