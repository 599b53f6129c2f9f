//! A small HTTP interface to the controls of a server in another process, for shell scripts.
//!
//! | request | effect |
//! | --- | --- |
//! | `GET /counts` | the request counters as JSON |
//! | `GET /keys?prefix=P` | one key a line |
//! | `GET /raw/KEY`, `PUT /raw/KEY`, `DELETE /raw/KEY` | an object past every check |
//! | `POST /flip/KEY?at=N` | flips a bit of byte N |
//! | `POST /swap?a=KEY&b=KEY` | exchanges the bytes of two objects |
//! | `POST /truncate/KEY?to=N` | cuts an object to N bytes |
//! | `POST /online`, `/offline`, `/silent` | ends or starts an outage |
//! | `POST /fault?kind=K&on=R&key=PART&rate=P&times=N` | adds a fault; K is `delay` (with `ms`), `500`, `503`, `403`, `409`, `reset`, `hang`, `lose`, `cut`, `truncate`, `page`, `portal`, `501`, `413` (with `above`, in bytes); R a kind of request as in `/counts` |
//! | `POST /clear` | removes every fault and ends an outage |
//! | `POST /behave?FIELD=VALUE` | `sse=honest,ignores,other_key` or an algorithm to claim; `ignores_if_none_match`, `ignores_if_match`, `no_delete_objects`, `ignores_ranges`, `denies_all`, `denies_writes` `=true,false`; `bucket_default=MODE` |

use super::S3Server;
use super::faults::{Fault, FaultKind, Faults, Outage, RequestKind};
use super::memory::Memory;
use super::sse::SseConduct;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

type Answer = Result<Bytes, String>;

/// Serves the controls of `server` on `listener` until dropped. Must run inside a runtime.
pub async fn serve_control(listener: TcpListener, server: &S3Server) -> std::io::Result<()> {
    let control = Arc::new(Control { memory: server.memory(), faults: server.shared_faults() });
    loop {
        let (socket, _) = listener.accept().await?;
        let control = control.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let control = control.clone();
                async move { control.answer(request).await }
            });
            // A client that hangs up early is no concern of the server.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

struct Control {
    memory: Arc<Memory>,
    faults: Arc<Faults>,
}

impl Control {
    async fn answer(&self, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
        let method = request.method().as_str().to_owned();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let query: HashMap<String, String> =
            url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let body = request.into_body().collect().await?.to_bytes();
        let (status, text) = match self.act(&method, &path, &query, body) {
            Ok(text) => (200, text),
            Err(problem) => (400, Bytes::from(problem + "\n")),
        };
        let mut response = Response::new(Full::new(text));
        *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a valid status");
        Ok(response)
    }

    fn act(
        &self,
        method: &str,
        path: &str,
        query: &HashMap<String, String>,
        body: Bytes,
    ) -> Answer {
        let done = Ok(Bytes::new());
        match (method, path.split_once('/').map_or("", |(_, rest)| rest)) {
            ("GET", "counts") => {
                let json = serde_json::to_vec(&self.memory.counters.snapshot());
                Ok(json.map_err(|e| e.to_string())?.into())
            }
            ("GET", "keys") => {
                let prefix = query.get("prefix").map(String::as_str).unwrap_or_default();
                let keys = self.memory.raw().keys().into_iter();
                let lines: Vec<_> = keys.filter(|key| key.starts_with(prefix)).collect();
                Ok((lines.join("\n") + "\n").into())
            }
            ("POST", "online") => {
                self.faults.set_outage(Outage::None);
                done
            }
            ("POST", "offline") => {
                self.faults.set_outage(Outage::Refused);
                done
            }
            ("POST", "silent") => {
                self.faults.set_outage(Outage::Silent);
                done
            }
            ("POST", "clear") => {
                self.faults.clear();
                done
            }
            ("POST", "fault") => {
                self.faults.add(fault(query)?);
                done
            }
            ("POST", "behave") => {
                for (field, value) in query {
                    self.behave(field, value)?;
                }
                done
            }
            ("POST", "swap") => {
                let (a, b) = (self.raw(need(query, "a")?)?, self.raw(need(query, "b")?)?);
                self.memory.put_raw(need(query, "a")?, b);
                self.memory.put_raw(need(query, "b")?, a);
                done
            }
            (method, rest) => match (method, rest.split_once('/')) {
                ("GET", Some(("raw", key))) => self.raw(key),
                ("PUT", Some(("raw", key))) => {
                    self.memory.put_raw(key, body);
                    done
                }
                ("DELETE", Some(("raw", key))) => match self.memory.raw().remove(key) {
                    true => done,
                    false => Err(format!("no object {key}")),
                },
                ("POST", Some(("flip", key))) => {
                    let at = number(need(query, "at")?)? as usize;
                    match self.memory.flip_raw(key, at) {
                        true => done,
                        false => Err(format!("no byte {at} of {key}")),
                    }
                }
                ("POST", Some(("truncate", key))) => {
                    let (bytes, to) = (self.raw(key)?, number(need(query, "to")?)? as usize);
                    self.memory.put_raw(key, bytes.slice(..to.min(bytes.len())));
                    done
                }
                _ => Err(format!("no control {method} {path}")),
            },
        }
    }

    fn raw(&self, key: &str) -> Answer {
        let object = self.memory.raw().get(key).ok_or_else(|| format!("no object {key}"))?;
        Ok(object.bytes.clone())
    }

    fn behave(&self, field: &str, value: &str) -> Result<(), String> {
        let mut behaviour = self.memory.behaviour.write();
        let flag = || match value {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("{field}={other} is neither true nor false")),
        };
        match field {
            "sse" => {
                behaviour.sse = match value {
                    "honest" => SseConduct::Honest,
                    "ignores" => SseConduct::Ignores,
                    "other_key" => SseConduct::OtherKey,
                    algorithm => SseConduct::Claims(algorithm.to_owned()),
                }
            }
            "bucket_default" => {
                behaviour.bucket_default = (!value.is_empty()).then(|| value.to_owned());
            }
            "ignores_if_none_match" => behaviour.ignores_if_none_match = flag()?,
            "ignores_if_match" => behaviour.ignores_if_match = flag()?,
            "no_delete_objects" => behaviour.no_delete_objects = flag()?,
            "ignores_ranges" => behaviour.ignores_ranges = flag()?,
            "denies_all" => behaviour.denies_all = flag()?,
            "denies_writes" => behaviour.denies_writes = flag()?,
            other => return Err(format!("no behaviour {other}")),
        }
        Ok(())
    }
}

fn fault(query: &HashMap<String, String>) -> Result<Fault, String> {
    let kind = match need(query, "kind")? {
        "delay" => FaultKind::Delay(Duration::from_millis(number(need(query, "ms")?)?)),
        "500" => FaultKind::INTERNAL,
        "503" => FaultKind::SLOW_DOWN,
        "403" => FaultKind::DENIED,
        "409" => FaultKind::CONFLICT,
        "reset" => FaultKind::Reset,
        "hang" => FaultKind::Hang,
        "lose" => FaultKind::LoseAnswer,
        "page" => FaultKind::PAGE,
        "portal" => FaultKind::PORTAL,
        "413" => FaultKind::TooLarge(number(need(query, "above")?)?),
        "501" => FaultKind::Status(501, "NotImplemented"),
        "cut" => FaultKind::CutBody,
        "truncate" => FaultKind::Truncate,
        other => return Err(format!("no fault {other}")),
    };
    let mut fault = Fault::new(kind);
    if let Some(on) = query.get("on") {
        let kind: RequestKind = serde_json::from_value(serde_json::Value::String(on.clone()))
            .map_err(|e| format!("on={on}: {e}"))?;
        fault = fault.on(kind);
    }
    if let Some(part) = query.get("key") {
        fault = fault.key(part);
    }
    if let Some(rate) = query.get("rate") {
        fault = fault.rate(rate.parse().map_err(|e| format!("rate={rate}: {e}"))?);
    }
    if let Some(times) = query.get("times") {
        fault = fault.times(number(times)?);
    }
    Ok(fault)
}

fn need<'a>(query: &'a HashMap<String, String>, name: &str) -> Result<&'a str, String> {
    query.get(name).map(String::as_str).ok_or_else(|| format!("{name}= is missing"))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e| format!("{text}: {e}"))
}
