//! Who may come in: addresses, passwords, authorities.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[tokio::test]
async fn whitelist_allowlist_and_denylist_source_range() {
    for name in ["whitelist-source-range", "allowlist-source-range"] {
        assert_eq!(world(&[(name, "10.0.0.0/8,127.0.0.1")]).await.get("/").await.status, 200);
        assert_eq!(world(&[(name, "10.0.0.0/8")]).await.get("/").await.status, 403);
    }
    assert_eq!(world(&[("denylist-source-range", "127.0.0.0/8")]).await.get("/").await.status, 403);
    assert_eq!(world(&[("denylist-source-range", "10.0.0.0/8")]).await.get("/").await.status, 200);
}

const USERS: &[u8] = b"alice:{PLAIN}secret\n";
/// `alice:secret` and `alice:wrong`.
const RIGHT: &str = "Basic YWxpY2U6c2VjcmV0";
const WRONG: &str = "Basic YWxpY2U6d3Jvbmc=";

async fn guarded(pairs: &[(&str, &str)], data: &[(&str, &[u8])]) -> World {
    let mut world = World::start(&[]).await;
    secret(&mut world.objects, "users", data);
    let on = [("auth-type", "basic"), ("auth-secret", "users"), ("auth-realm", "Members only")];
    world.set(&[annotated(&[&on[..], pairs].concat())]);
    world.fine();
    world
}

async fn authorized(world: &World, header: &str) -> Answer {
    world.ask("h", "/").header("Authorization", header).send().await
}

#[tokio::test]
async fn auth_type_basic_auth_secret_and_auth_realm() {
    let mut world = guarded(&[], &[("auth", USERS)]).await;
    let stranger = world.get("/").await;
    assert_eq!((stranger.status, stranger.header("www-authenticate")), (401, "Basic realm=\"Members only\""));
    assert_eq!(authorized(&world, WRONG).await.status, 401);
    assert_eq!(authorized(&world, RIGHT).await.service(), "a");
    world.change(|objects| secret(objects, "users", &[("auth", b"bob:{PLAIN}x\n")]));
    assert_eq!(authorized(&world, RIGHT).await.status, 401, "the Secret has changed");
    world.change(|objects| objects.secrets.clear());
    assert_eq!(authorized(&world, RIGHT).await.status, 503, "without users nobody is let in");
    assert!(world.problems.iter().any(|(_, why)| why.contains("auth-secret")));
}

#[tokio::test]
async fn auth_secret_type_auth_map() {
    let world = guarded(&[("auth-secret-type", "auth-map")], &[("alice", b"{PLAIN}secret")]).await;
    assert_eq!(authorized(&world, RIGHT).await.service(), "a");
    assert_eq!(authorized(&world, WRONG).await.status, 401);
}

#[tokio::test]
async fn satisfy_any() {
    let here =
        guarded(&[("satisfy", "any"), ("whitelist-source-range", "127.0.0.1")], &[("auth", USERS)]).await;
    assert_eq!(here.get("/").await.service(), "a", "the right address is enough");
    let there =
        guarded(&[("satisfy", "any"), ("whitelist-source-range", "10.0.0.1")], &[("auth", USERS)]).await;
    assert_eq!(there.get("/").await.status, 401);
    assert_eq!(authorized(&there, RIGHT).await.service(), "a", "the right password is enough");
}

/// An authority: lets in whoever sends `x-pass: yes`, and says what it was told.
async fn authority() -> std::net::SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let field = |name: &str| {
                    let line = head.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
                    line.unwrap_or_default().to_owned()
                };
                let status = match field("x-pass").as_str() {
                    "yes" => "200 OK",
                    "no" => "403 Forbidden",
                    "broken" => "500 Oops",
                    _ => "401 Unauthorized\r\nWWW-Authenticate: Bearer",
                };
                let method = head.split(' ').next().unwrap();
                let told =
                    [method.to_owned(), field("x-original-url"), field("x-original-method"), field("x-mine")]
                        .join("|");
                let answer = format!(
                    "HTTP/1.1 {status}\r\nX-User: alice\r\nX-Told: {told}\r\nSet-Cookie: session=1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn auth_url_and_auth_response_headers() {
    let url = format!("http://{}/check", authority().await);
    let world = world(&[("auth-url", &url), ("auth-response-headers", "X-User, X-Told")]).await;
    let stranger = world.get("/").await;
    assert_eq!((stranger.status, stranger.header("www-authenticate")), (401, "Bearer"));
    let passed =
        |value: &'static str| world.ask("h", "/p?q").header("X-Pass", value).header("X-User", "forged");
    let good = passed("yes").body("text").send().await;
    assert_eq!((good.sent("x-user").as_str(), good.told()["body"].as_str()), ("alice", Some("text")));
    assert_eq!(good.sent("x-told"), "get|http://h/p?q|post|");
    assert_eq!(good.header("set-cookie"), "session=1");
    assert_eq!(passed("no").send().await.status, 403);
    assert_eq!(passed("broken").send().await.status, 500);
}

#[tokio::test]
async fn auth_signin_and_its_redirect_parameter() {
    let url = format!("http://{}/", authority().await);
    let mut world = world(&[("auth-url", &url), ("auth-signin", "https://sso.example/start")]).await;
    redirects(&world.get("/p?q=1").await, 302, "https://sso.example/start?rd=http://h%2Fp%3Fq%3D1");
    world.set(&[annotated(&[
        ("auth-url", &url),
        ("auth-signin", "https://sso.example/start?app=1"),
        ("auth-signin-redirect-param", "back"),
    ])]);
    redirects(&world.get("/").await, 302, "https://sso.example/start?app=1&back=http://h%2F");
}

#[tokio::test]
async fn auth_method_auth_proxy_set_headers_and_auth_always_set_cookie() {
    let url = format!("http://{}/", authority().await);
    let mut world = World::start(&[]).await;
    config(&mut world.objects, "told", &[("X-Mine", "from-config")]);
    world.set(&[annotated(&[
        ("auth-url", &url),
        ("auth-method", "POST"),
        ("auth-proxy-set-headers", "told"),
        ("auth-response-headers", "X-Told"),
        ("auth-always-set-cookie", "true"),
    ])]);
    world.fine();
    let good = world.ask("h", "/").header("X-Pass", "yes").send().await;
    assert_eq!(good.sent("x-told"), "post|http://h/|get|from-config");
    let teapot = world.ask("h", "/?status=418").header("X-Pass", "yes").send().await;
    assert_eq!((teapot.status, teapot.header("set-cookie")), (418, "session=1"));
}

#[tokio::test]
async fn an_authority_that_does_not_answer_lets_nobody_in() {
    let (dead, _held) = nobody();
    let world = world(&[("auth-url", &format!("http://{dead}/"))]).await;
    assert_eq!(world.get("/").await.status, 500);
}

#[tokio::test]
async fn auth_request_redirect() {
    let listener = loopback().await;
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let world = world(&[("auth-url", &url), ("auth-request-redirect", "/back?to=$request_uri")]).await;
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = String::new();
        while !head.contains("\r\n\r\n") {
            let mut some = [0; 4096];
            let read = stream.read(&mut some).await.unwrap();
            assert!(read > 0, "{head}");
            head.push_str(&String::from_utf8_lossy(&some[..read]));
        }
        stream.write_all(b"HTTP/1.1 204 Fine\r\nConnection: close\r\n\r\n").await.unwrap();
        head.to_ascii_lowercase()
    });
    assert_eq!(world.get("/p").await.service(), "a");
    let head = asked.await.unwrap();
    assert!(head.contains("\r\nx-auth-request-redirect: /back?to=/p\r\n"), "{head}");
}
