//! The few requests that are changed on their way, and the answers that are (control.md 4.3).

use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};

use super::answer::{AnyBody, set_length, whole};
use super::create::{self, Image};
use super::inspect::Within;
use super::object::Object;
use super::route::{Route, parameter};
use super::upstream::{ANSWER_LIMIT, bounded, is_type};
use super::{Failure, Proxy, Settings, exec, start};
use crate::docker::keeper::Expected;

/// More than any honest description of a container, in bytes.
const REQUEST_LIMIT: usize = 16 << 20;

/// What is left to do when Docker has answered.
pub(super) enum After {
    Nothing,
    /// Wait until the container is attached.
    Attached(Expected),
    /// Tell the address on the network.
    Addresses(Within),
}

/// A request that is ready for Docker.
type Ready = Request<AnyBody>;

impl Proxy {
    /// Changes the request, if it is one of those.
    pub(super) async fn intercept(&self, request: Request<Incoming>) -> Result<(Ready, After), Failure> {
        let path = request.uri().path().to_owned();
        match Route::of(&path) {
            Route::Create => Ok((self.create(request).await?, After::Nothing)),
            Route::Start(id) => self.start(request, id).await,
            Route::ExecCreate(id) => Ok((self.exec_create(request, id).await?, After::Nothing)),
            Route::Inspect(within) if self.settings.rewrite_inspect => {
                Ok((untouched(request), After::Addresses(within)))
            }
            _ => Ok((untouched(request), After::Nothing)),
        }
    }

    async fn settings(&self) -> Settings {
        let mut settings = self.settings.clone();
        if let Some(dns) = &mut settings.dns {
            dns.address = (self.nameserver)().await;
        }
        settings
    }

    async fn create(&self, request: Request<Incoming>) -> Result<Ready, Failure> {
        let name = parameter(request.uri().query().unwrap_or_default(), "name").unwrap_or_default();
        edit(request, async |body| {
            if create::left_alone(&body, self.settings.default_ipalloc)?.is_some() {
                return Ok(None);
            }
            let image = self.image_of(&body).await?;
            create::rewrite(body, &name, &image, &self.settings().await)
        })
        .await
    }

    /// What the image adds to a request. One that is not there matters only if the container is to be attached;
    /// else Docker says so.
    async fn image_of(&self, request: &Object) -> Result<Image, Failure> {
        match self.docker.image(&request.text("Image")?).await {
            Err(Failure::NoImage(_)) if !self.settings.default_ipalloc => Ok(Image::default()),
            found => found,
        }
    }

    async fn exec_create(&self, request: Request<Incoming>, id: &str) -> Result<Ready, Failure> {
        let container = self.docker.container(id).await?;
        if !container.has_helper() || container.wanted(self.settings.default_ipalloc).is_err() {
            return Ok(untouched(request));
        }
        edit(request, async |body| exec::rewrite(body)).await
    }

    async fn start(&self, request: Request<Incoming>, id: &str) -> Result<(Ready, After), Failure> {
        let container = self.docker.container(id).await?;
        if !container.waits() {
            return Ok((untouched(request), After::Nothing));
        }
        let plain = is_type(request.headers(), "application/json") && !request.body().is_end_stream();
        let ready = match plain {
            true => {
                let mut settings = self.settings().await;
                settings.dns = settings.dns.filter(|_| container.wants_dns());
                edit(request, async |body| {
                    start::rewrite(body, container.hostname(), &settings)
                })
                .await?
            }
            false => untouched(request),
        };
        // Before Docker can tell of the start.
        Ok((ready, After::Attached(self.keeper.expect_start(&container.id))))
    }

    /// Puts the address on the network into an answer; if there is none, it stays as it is. Ends at once, without
    /// waiting for a start under way, when `gone` does.
    pub(super) async fn with_address(
        &self,
        within: Within,
        answer: Response<Incoming>,
        gone: impl Future<Output = ()>,
    ) -> Result<Response<AnyBody>, Failure> {
        let (mut head, body) = answer.into_parts();
        let body = bounded(body, ANSWER_LIMIT).await?;
        let changed = match self.addressed(within, &body, gone).await {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!("an answer of Docker stays as it is: {error}");
                None
            }
        };
        let body = changed.map_or(body, Into::into);
        set_length(&mut head.headers, body.len());
        Ok(Response::from_parts(head, whole(body)))
    }

    async fn addressed(
        &self,
        within: Within,
        body: &[u8],
        gone: impl Future<Output = ()>,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let Some(answer) = Object::parse(body)? else {
            return Ok(None);
        };
        let Some((id, pid)) = within.process(&answer)? else {
            return Ok(None);
        };
        if pid == 0 {
            return Ok(None);
        }
        tokio::select! {
            () = self.keeper.settled(&id) => {}
            () = gone => {}
        }
        let Some(seen) = (self.look)(pid).await else {
            return Ok(None);
        };
        let changed = within.rewrite(answer, &seen)?;
        Ok(changed.map(|answer| serde_json::to_vec(&answer)).transpose()?)
    }
}

/// May the address be put into this answer?
pub(super) fn is_changeable(answer: &Response<Incoming>) -> bool {
    let length = answer.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    answer.status() == StatusCode::OK && length.is_none_or(|length: usize| length <= ANSWER_LIMIT)
}

/// A request whose body was not looked at.
fn untouched(request: Request<Incoming>) -> Ready {
    request.map(BodyExt::boxed_unsync)
}

/// Changes a JSON body. What is no object is Docker's to refuse.
async fn edit(
    request: Request<Incoming>,
    change: impl AsyncFnOnce(Object) -> Result<Option<Object>, Failure>,
) -> Result<Ready, Failure> {
    let (mut head, body) = request.into_parts();
    let body = bounded(body, REQUEST_LIMIT).await?;
    let read = |head: Parts, body| Ok(Request::from_parts(head, whole(body)));
    let Ok(Some(object)) = Object::parse(&body) else {
        return read(head, body);
    };
    let Some(changed) = change(object).await? else {
        return read(head, body);
    };
    let body = serde_json::to_vec(&changed)?;
    set_length(&mut head.headers, body.len());
    read(head, body.into())
}
