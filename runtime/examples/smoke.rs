use std::time::Duration;
use skiff_runtime::*;
use tokio::io::AsyncReadExt;
#[tokio::main]
async fn main() {
    let rt = Runtime::open(RuntimeOptions{ state_dir: "/tmp/skiff-s/state".into(), run_dir: "/tmp/skiff-s/run".into(), keeper: None}).await.unwrap_or_else(|e| panic!("{e:?} {:?}", e.advice()));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let image = image::Image{ name:"x".into(), digest:"d".into(), config: Default::default(), layers: vec![args[0].clone().into()], packed_bytes:0, timings: Default::default()};
    let n: usize = std::env::var("N").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    for i in 0..n {
    let spec = ContainerSpec{ id: format!("c{i}"), hostname: "h".into(), entrypoint: Some(args[1..].to_vec()), memory_bytes: 128<<20, cpu_millis: 500, pids: 100, nofile: 1024, writable_bytes: 512<<20, tmp_bytes: 512<<20, user: std::env::var("U").ok(), working_dir: std::env::var("W").ok(), read_only: std::env::var("RO").is_ok(), ..Default::default() };
    let t = std::time::Instant::now();
    match rt.start(&image, spec).await {
        Ok(c) => {
            println!("{:?} total {:?}", c.timings(), t.elapsed());
            let (mut o, mut e) = c.take_output().unwrap();
            let mut s = String::new();
            let exit = tokio::time::timeout(Duration::from_secs(3), c.wait()).await;
            if exit.is_err() { println!("stop {:?}", c.stop(Duration::from_secs(1)).await); }
            o.read_to_string(&mut s).await.unwrap();
            print!("OUT {s}"); s.clear(); e.read_to_string(&mut s).await.unwrap();
            println!("ERR {s}"); println!("{exit:?} {:?}", c.stats());
        }
        Err(e) => println!("ERR {e:?} help {:?} fault {:?}", e.advice(), e.fault()),
    }
    }
    println!("shutdown {:?}", rt.shutdown().await);
}
