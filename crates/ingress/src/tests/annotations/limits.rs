//! How much a client may ask.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

#[tokio::test]
async fn limit_rps_and_limit_burst_multiplier() {
    let world = world(&[("limit-rps", "2"), ("limit-burst-multiplier", "3")]).await;
    let mut good = 0;
    for _ in 0..30 {
        good += usize::from(world.get("/").await.status == 200);
    }
    assert!((7..=12).contains(&good), "{good}");
    assert_eq!(world.get("/").await.status, 503);
}

#[tokio::test]
async fn limit_rpm_limit_whitelist_and_limit_allowlist() {
    let world_of = |name: &'static str, free: &'static str| async move {
        world(&[("limit-rpm", "1"), ("limit-burst-multiplier", "1"), (name, free)]).await
    };
    let counted = world_of("limit-whitelist", "10.0.0.0/8").await;
    let codes = [counted.get("/").await.status, counted.get("/").await.status, counted.get("/").await.status];
    assert_eq!(codes, [200, 200, 503]);
    for name in ["limit-whitelist", "limit-allowlist"] {
        let free = world_of(name, "127.0.0.0/8").await;
        for _ in 0..5 {
            assert_eq!(free.get("/").await.status, 200, "{name}");
        }
    }
}

#[tokio::test]
async fn limit_connections() {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    let mut world = world(&[("limit-connections", "1")]).await;
    world.change(|objects| service(objects, "a", &[address]));
    let held = tokio::spawn({
        let plain = world.plain;
        async move {
            let mut stream = TcpStream::connect(plain).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            stream
        }
    });
    let _first = listener.accept().await.unwrap();
    assert_eq!(world.get("/").await.status, 503);
    drop(held.await.unwrap());
    // The place is free again once the client has gone.
    world.change(|objects| service(objects, "a", &[]));
    let mut last = 0;
    for _ in 0..200 {
        last = world.get("/").await.status;
        let good = echo("a").await;
        world.change(|objects| service(objects, "a", &[good]));
        if last == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(last, 200);
}

#[tokio::test]
async fn limit_rate_and_limit_rate_after() {
    let body = "x".repeat(6 << 10);
    let world = world(&[("limit-rate", "4"), ("limit-rate-after", "2")]).await;
    let start = Instant::now();
    let answer = world.ask("h", "/").body(body.clone()).send().await;
    assert_eq!(answer.told()["body"].as_str().map(str::len), Some(6 << 10));
    assert!(start.elapsed() >= Duration::from_millis(500), "4 of 6 KiB at 4 KiB/s: {:?}", start.elapsed());
}
