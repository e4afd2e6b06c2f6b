//! Passwords and tokens stay where they belong: in no log, and in no file in the clear.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{logs, start};

const PASSWORD: &str = "canary-password-7f3a91c4";
const NEW_PASSWORD: &str = "canary-password-b82e60d5";
const WRONG_PASSWORD: &str = "canary-password-19ccd00a";
const REGISTRATION_TOKEN: &str = "canary-registration-55e1";

fn contains(bytes: &[u8], canary: &str) -> bool {
    bytes.windows(canary.len()).any(|window| window == canary.as_bytes())
}

/// The pages of a file that are not empty: a store reserves far more than it has written.
fn written(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(4_096).filter(|page| **page != [0; 4_096][..page.len()]).flatten().copied().collect()
}

fn files(folder: &Path, all: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, all),
            false => all.push((path.display().to_string(), written(&fs::read(&path).unwrap()))),
        }
    }
}

#[test]
fn neither_passwords_nor_tokens_are_logged_or_stored_in_the_clear() {
    let server = start(|config| {
        config.registration.open = false;
        config.registration.token = Some(REGISTRATION_TOKEN.into());
    });
    let ask = |method: &str, path: &str, token: Option<&str>, body: &serde_json::Value| {
        let reply = server.ask(method, &format!("/_matrix/client/v3/{path}"), token, body.to_string().as_bytes());
        (reply.status, reply.json())
    };
    let mut canaries =
        vec![PASSWORD, NEW_PASSWORD, WRONG_PASSWORD].into_iter().map(ToOwned::to_owned).collect::<Vec<_>>();

    // Registration in two stages, whose first request has the password already.
    let mut body = json!({ "username": "canary", "password": PASSWORD, "refresh_token": true });
    let (_, begun) = ask("POST", "register", None, &body);
    body["auth"] =
        json!({ "type": "m.login.registration_token", "token": REGISTRATION_TOKEN, "session": begun["session"] });
    let (status, _) = ask("POST", "register", None, &body);
    assert_eq!(status, 401);
    body["auth"] = json!({ "type": "m.login.dummy", "session": begun["session"] });
    let (status, registered) = ask("POST", "register", None, &body);
    assert_eq!(status, 200, "{registered}");
    let mut keep = |answer: &serde_json::Value| {
        let tokens = ["access_token", "refresh_token"].map(|name| answer[name].as_str().unwrap_or_default().to_owned());
        canaries.extend(tokens.iter().filter(|token| !token.is_empty()).cloned());
        tokens
    };
    keep(&registered);

    let login = |password: &str| {
        let identifier = json!({ "type": "m.id.user", "user": "canary" });
        let body = json!({ "type": "m.login.password", "identifier": identifier, "password": password, "refresh_token": true });
        ask("POST", "login", None, &body)
    };
    assert_eq!(login(WRONG_PASSWORD).0, 403);
    let [_, refresh] = keep(&login(PASSWORD).1);
    let (status, refreshed) = ask("POST", "refresh", None, &json!({ "refresh_token": refresh }));
    assert_eq!(status, 200, "{refreshed}");
    let [token, _] = keep(&refreshed);
    assert_eq!(ask("GET", &format!("account/whoami?access_token={token}"), None, &json!({})).0, 200);
    assert_eq!(ask("GET", &format!("nothing?access_token={token}"), Some(&token), &json!({})).0, 404);

    // With the password asked for again, wrong and right.
    let mut body = json!({ "new_password": NEW_PASSWORD, "logout_devices": false });
    let (_, begun) = ask("POST", "account/password", Some(&token), &body);
    for (password, wanted) in [(WRONG_PASSWORD, 401), (PASSWORD, 200)] {
        let identifier = json!({ "type": "m.id.user", "user": "canary" });
        body["auth"] = json!({
            "type": "m.login.password", "identifier": identifier, "password": password, "session": begun["session"]
        });
        let (status, answer) = ask("POST", "account/password", Some(&token), &body);
        assert_eq!(status, wanted, "{answer}");
    }
    assert_eq!(login(PASSWORD).0, 403);
    let [token, _] = keep(&login(NEW_PASSWORD).1);
    let identifier = json!({ "type": "m.id.user", "user": "canary" });
    let auth = json!({ "type": "m.login.password", "identifier": identifier, "password": NEW_PASSWORD });
    let (status, answer) = ask("POST", "account/deactivate", Some(&token), &json!({ "auth": auth }));
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = login(NEW_PASSWORD);
    assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_USER_DEACTIVATED")), "{answer}");
    assert_eq!(ask("GET", "account/whoami", Some(&token), &json!({})).0, 401);

    // Stopped, so that everything that will be written is.
    let data_dir = server.data_dir.clone();
    drop(server);
    let mut all = Vec::new();
    files(&data_dir, &mut all);
    assert!(
        all.iter().any(|(_, bytes)| contains(bytes, "@canary:edge.example")),
        "the files are not those of the store"
    );
    assert!(canaries.len() > 8);
    for canary in &canaries {
        for (name, bytes) in &all {
            assert!(!contains(bytes, canary), "{canary} is in {name}");
        }
        assert!(!contains(&logs(), canary), "{canary} is in the log");
    }
    assert!(!contains(&logs(), REGISTRATION_TOKEN));
    assert!(contains(&logs(), "/_matrix/client/v3/login"), "the log is not of this process");
}
