//! A KMS in this process that refuses as it is told: `Encrypt` and `Decrypt` of the JSON protocol.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The key that `alias/sealfs` is of at first, and the one that it is moved to.
pub const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/first";
pub const OTHER: &str = "arn:aws:kms:eu-west-1:111122223333:key/second";

/// What to answer instead.
#[derive(Clone, Debug)]
pub enum Answer {
    /// An error of the service: its code and message.
    Refuse(&'static str, &'static str),
    /// A page, as portals and proxies give.
    Page,
    /// The connection ends without a word.
    Nothing,
}

#[derive(Default)]
struct State {
    alias: &'static str,
    /// Answers of the next requests, before it does what it is asked.
    next: VecDeque<Answer>,
    /// The answer of all requests.
    always: Option<Answer>,
    /// Action and body of each request.
    seen: Vec<(String, Value)>,
}

/// A running server; its thread ends with the test's process.
#[derive(Clone)]
pub struct Kms {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Kms {
    pub fn start() -> Kms {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let state = Arc::new(Mutex::new(State { alias: KEY, ..State::default() }));
        let kms = Kms { endpoint, state };
        let serving = kms.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kms = serving.clone();
                std::thread::spawn(move || kms.serve(stream));
            }
        });
        kms
    }

    /// Answers so from now on, or as it should again.
    pub fn always(&self, answer: Option<Answer>) {
        self.state.lock().expect("no panic").always = answer;
    }

    /// Answers the next requests so.
    pub fn next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state.lock().expect("no panic").next.extend(answers);
    }

    pub fn move_alias(&self) {
        self.state.lock().expect("no panic").alias = OTHER;
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.state.lock().expect("no panic").seen)
    }

    fn serve(&self, mut stream: TcpStream) {
        while let Some((action, body)) = request(&mut stream) {
            let mut state = self.state.lock().expect("no panic");
            state.seen.push((action.clone(), body.clone()));
            let told = state.next.pop_front().or(state.always.clone());
            let alias = state.alias;
            drop(state);
            let (status, kind, text) = match told {
                Some(Answer::Nothing) => return,
                Some(Answer::Page) => (200, "text/html", "<html>sign in</html>".to_owned()),
                Some(Answer::Refuse(code, message)) => refusal(code, message),
                None => match answer(&action, &body, alias) {
                    Ok(done) => (200, "application/x-amz-json-1.1", done.to_string()),
                    Err(code) => refusal(code, "no"),
                },
            };
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
                text.len()
            );
            if stream.write_all(&[head.as_bytes(), text.as_bytes()].concat()).is_err() {
                return;
            }
        }
    }
}

fn refusal(code: &str, message: &str) -> (u16, &'static str, String) {
    let body = json!({"__type": code, "message": message});
    (400, "application/x-amz-json-1.1", body.to_string())
}

/// What the real one does: the ciphertext says key, context and plaintext.
fn answer(action: &str, body: &Value, alias: &str) -> Result<Value, &'static str> {
    let arn = match body["KeyId"].as_str() {
        Some("alias/sealfs") => alias,
        Some(arn @ (KEY | OTHER)) => arn,
        _ => return Err("NotFoundException"),
    };
    if action.ends_with("Encrypt") {
        let held = json!([arn, body["EncryptionContext"], body["Plaintext"]]);
        // Not to be mistaken for the plaintext.
        let blob = STANDARD.encode(turned(held.to_string().as_bytes()));
        return Ok(json!({"KeyId": arn, "CiphertextBlob": blob}));
    }
    let blob = STANDARD.decode(body["CiphertextBlob"].as_str().unwrap_or_default());
    let held: Value =
        serde_json::from_slice(&turned(&blob.unwrap_or_default())).unwrap_or_default();
    if held[0] != arn {
        return Err("IncorrectKeyException");
    }
    if held[1] != body["EncryptionContext"] {
        return Err("InvalidCiphertextException");
    }
    Ok(json!({"KeyId": arn, "Plaintext": held[2]}))
}

fn turned(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| !byte).collect()
}

/// The action and body of the next request.
fn request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let mut part = [0; 4096];
        match stream.read(&mut part) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&part[..n]),
            _ => return None,
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let field = |name: &str| {
        let line = head.lines().find(|line| line.starts_with(name))?;
        Some(line[name.len()..].trim().to_owned())
    };
    let length: usize = field("content-length:")?.parse().ok()?;
    let mut body = bytes[end..].to_vec();
    while body.len() < length {
        let mut part = [0; 4096];
        match stream.read(&mut part) {
            Ok(n) if n > 0 => body.extend_from_slice(&part[..n]),
            _ => return None,
        }
    }
    let action = field("x-amz-target:")?.replace("trentservice.", "");
    let action = if action == "encrypt" { "Encrypt" } else { "Decrypt" };
    Some((action.to_owned(), serde_json::from_slice(&body).ok()?))
}
