//! How fast the API answers with 100,000 archives in the catalog, all of one application: `hey` asks at a steady rate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use archiver_testkit::net::free_port;
use archiver_testkit::postgres::Postgres;
use serde::Serialize;

/// The project of all archives, and its secret.
const PROJECT: &str = "123456";
const SECRET: &str = "a secret of forty characters, or nearly so";
/// Archives in the catalog.
const ARCHIVES: u32 = 100_000;
/// Those that ask, and how often each does in a second.
const CLIENTS: u32 = 4;
const RATE: u32 = 25;
/// The API answers for the first time within this.
const START_MAX: Duration = Duration::from_secs(60);

/// How long answers took.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The catalog.
    pub catalog: &'static str,
    /// What was asked for.
    pub asked: &'static str,
    /// Answers.
    pub answers: usize,
    /// Milliseconds.
    pub p50_ms: f64,
    /// Milliseconds.
    pub p99_ms: f64,
    /// Milliseconds.
    pub longest_ms: f64,
}

const INSERT: &str = "INSERT INTO archives (archive_id, job_id, session_id, application_id, name, status, reason, \
     output_mode, created_at, updated_at, duration_s, size, sha256, object_key, document) ";

fn select(id: &str, numbers: &str) -> String {
    format!(
        "SELECT {id}, {id}, 'session-' || (i % 1000), '{PROJECT}', 'Weekly', 'available', 'session ended', 'composed', \
         1700000000000000 + i * 1000000, 1700000000000000 + i * 1000000, 3600, 300000000, 'c2hh', \
         '{PROJECT}/' || {id} || '/archive.mp4', '{{}}' FROM {numbers}"
    )
}

/// The id of the archive with a number.
fn id(number: u32) -> String {
    format!("{number:08x}-0000-4000-8000-000000000000")
}

/// Puts the archives into an SQLite file.
fn fill_sqlite(file: &Path) -> Result<()> {
    let numbers = format!(
        "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ARCHIVES}) SELECT i FROM n)"
    );
    let sql = format!("{INSERT}{}", select("printf('%08x-0000-4000-8000-000000000000', i)", &numbers));
    let script = "import sqlite3,sys; db=sqlite3.connect(sys.argv[1]); db.execute(sys.argv[2]); db.execute('ANALYZE'); db.commit()";
    let status = Command::new("python3").args(["-c", script]).arg(file).arg(sql).status()?;
    ensure!(status.success(), "the archives cannot be put into {}", file.display());
    Ok(())
}

/// Puts the archives into a PostgreSQL.
fn fill_postgres(url: &str) -> Result<()> {
    let numbers = format!("generate_series(1::bigint, {ARCHIVES}) AS i");
    let sql = format!("{INSERT}{}", select("lpad(to_hex(i), 8, '0') || '-0000-4000-8000-000000000000'", &numbers));
    for statement in [sql, "VACUUM ANALYZE archives".to_owned()] {
        let status = Command::new("psql").args(["-q", "-v", "ON_ERROR_STOP=1", "-c", &statement, url]).status()?;
        ensure!(status.success(), "the archives cannot be put into PostgreSQL");
    }
    Ok(())
}

/// The API's process, ended with this.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It is on its way out anyhow.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn token() -> Result<String> {
    let now = archiver::model::time::Wallclock::now().as_millis() / 1000;
    let claims = serde_json::json!({ "iss": PROJECT, "ist": "project", "iat": now, "exp": now + 3600 });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    Ok(jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)?)
}

/// Asks for a while, and reads how long each answer took.
fn ask(address: &str, token: &str, seconds: u64) -> Result<Vec<f64>> {
    let out = Command::new("hey")
        .args(["-z", &format!("{seconds}s"), "-c", &CLIENTS.to_string(), "-q", &RATE.to_string(), "-o", "csv"])
        .args(["-H", &format!("X-OPENTOK-AUTH: {token}"), "-H", "Accept: application/json", address])
        .output()
        .context("hey is missing; `make bench` installs it")?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout)?;
    let mut took = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        // response-time,…,status-code,offset
        let status = fields.get(6).context("no status")?;
        ensure!(*status == "200", "{address} is answered with {status}");
        took.push(fields[0].parse::<f64>()? * 1e3);
    }
    Ok(took)
}

fn measure_one(archiver: &Path, catalog: &'static str, url: &str, dir: &Path, seconds: u64) -> Result<Vec<Row>> {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (api, http) = (SocketAddr::new(ip, free_port(ip)?), SocketAddr::new(ip, free_port(ip)?));
    let config = dir.join(format!("{catalog}.toml"));
    // Links are signed for a store that need not be there; so need not the broker, which only carries nudges.
    std::fs::write(
        &config,
        format!(
            "[worker]\ndata_dir = \"{0}\"\n[broker]\nurl = \"amqp://127.0.0.1:1\"\n[catalog]\nurl = \"{url}\"\n\
             [store]\nkind = \"s3\"\nbucket = \"b\"\nendpoint = \"http://127.0.0.1:1\"\naccess_key = \"a\"\nsecret_key = \"s\"\n\
             [api]\nbind = \"{api}\"\nrequests_per_second = 100000\n[bridge]\nenabled = false\n[http]\nbind = \"{http}\"\n[log]\nlevel = \"error\"\n",
            dir.display()
        ),
    )?;
    let run = |arguments: &[&str]| {
        Command::new(archiver).arg("--config").arg(&config).args(arguments).stdout(Stdio::null()).status()
    };
    ensure!(run(&["apps", "add", "--legacy", "--id", PROJECT, "--secret", SECRET])?.success(), "no application");
    match url.strip_prefix("sqlite:") {
        Some(file) => fill_sqlite(Path::new(file))?,
        None => fill_postgres(url)?,
    }
    let served = Served(Command::new(archiver).arg("--config").arg(&config).arg("api").spawn()?);
    let (base, token) = (format!("http://{api}/v2/project/{PROJECT}/archive"), token()?);
    let begun = Instant::now();
    while ask(&base, &token, 1).is_err() {
        ensure!(begun.elapsed() < START_MAX, "the API does not answer");
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut rows = Vec::new();
    for (asked, address) in [
        ("list, 50", base.clone()),
        ("list, 50 at 50,000", format!("{base}?offset=50000")),
        ("list of a session", format!("{base}?sessionId=session-7")),
        ("get", format!("{base}/{}", id(ARCHIVES / 2))),
    ] {
        let mut took = ask(&address, &token, seconds)?;
        took.sort_by(f64::total_cmp);
        let Some(longest_ms) = took.last().copied() else { bail!("nothing was answered") };
        let at = |p: f64| crate::process::percentile(&took, p);
        rows.push(Row { catalog, asked, answers: took.len(), p50_ms: at(50.0), p99_ms: at(99.0), longest_ms });
    }
    drop(served);
    Ok(rows)
}

/// Measures both catalogs, each question for so many seconds.
pub fn measure(archiver: &Path, seconds: u64) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let sqlite = format!("sqlite:{}", dir.path().join("catalog.sqlite").display());
    let mut rows = measure_one(archiver, "SQLite", &sqlite, dir.path(), seconds)?;
    let postgres = Postgres::start()?;
    rows.extend(measure_one(archiver, "PostgreSQL", &postgres.url(), dir.path(), seconds)?);
    println!("\nthe API with {ARCHIVES} archives, {} requests a second", CLIENTS * RATE);
    println!("{:<12} {:<20} {:>9} {:>9} {:>9} {:>9}", "catalog", "asked", "answers", "p50 ms", "p99 ms", "max ms");
    for row in &rows {
        println!(
            "{:<12} {:<20} {:>9} {:>9.2} {:>9.2} {:>9.2}",
            row.catalog, row.asked, row.answers, row.p50_ms, row.p99_ms, row.longest_ms
        );
    }
    Ok(rows)
}
