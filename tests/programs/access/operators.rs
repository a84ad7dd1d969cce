//! Operators' commands: over the socket in the data directory, and from elsewhere.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use stopover::local::operator_socket;
use support::program::{Installation, UPSTREAM, binary, output, run, write_executable};
use support::scripted::{Fault, Scripted};
use support::world::DEADLINE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use super::Cache;
use super::commands::guest;

/// What only operators may ask, and what the answer says.
const COMMANDS: [(&[&str], &str); 5] = [
    (&["fills", "retry"], "fills tried again: 0"),
    (&["gc", "--dry-run"], "nothing was changed"),
    (&["gc"], ""),
    (&["purge", "test.local/none"], "nothing is stored of test.local/none"),
    (&["robot", "list"], "puller: made "),
];

#[tokio::test(flavor = "multi_thread")]
async fn operators_ask_over_the_socket_and_callers_over_tcp_are_refused() -> anyhow::Result<()> {
    let cache = Cache::start().await?;
    for (command, said) in COMMANDS {
        let (status, text) = cache.stopover.run(command).await?;
        // A purge of nothing ends with 3.
        let well = if command[0] == "purge" { status.code() == Some(3) } else { status.success() };
        ensure!(well && text.contains(said), "{command:?}: {text}\n{}", cache.stopover.log());
        // Called by its address, as a proxy on the machine calls it, it takes nobody for its operator.
        let server = format!("http://{}", cache.stopover.address());
        let data = cache.installation.data().display().to_string();
        let (status, text) = run(&[command, &["--server", &server, "--data-dir", &data]].concat()).await?;
        ensure!(!status.success() && text.contains("asks for a login: log in as a robot"), "{command:?}: {text}");
        let (well, text) = guest(&cache, command, Some(("puller", &cache.secret))).await?;
        ensure!(!well && text.contains("403 Forbidden: robot:puller is no operator"), "{command:?}: {text}");
        ensure!(text.contains("`operators` in [access]") && text.contains("without --server"), "{command:?}: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_that_access_names_ask_from_elsewhere() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("a", "1", &[b"layer"]);
    upstream.fault(image.blobs[1].0.as_str(), Fault::Status(404, vec![], String::new()));
    let installation = Installation::with_configuration(&format!(
        "[access]\nrobots = true\noperators = [\"robot:ops\"]\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n",
        upstream.url()
    ))?;
    let stopover = installation.start().await?;
    let (status, text) = stopover.run(&["robot", "add", "ops"]).await?;
    ensure!(status.success(), "{text}");
    let secret = super::secret_in(&text)?;
    let server = format!("http://{}", stopover.address());
    let login = [("STOPOVER_USER", "ops".as_ref()), ("STOPOVER_PASSWORD", secret.as_ref())];
    let ask = async |arguments: &[&str]| {
        let there = ["--server", &server, "--data-dir", "/nowhere"];
        let answer = output(&[arguments, &there].concat(), &login).await?;
        ensure!(answer.status.success(), "{arguments:?}: {answer:?}\n{}", stopover.log());
        anyhow::Ok(String::from_utf8(answer.stdout)?)
    };
    ask(&["refresh", &format!("{UPSTREAM}/a:1")]).await?;
    let given_up = async {
        while !ask(&["fills"]).await?.starts_with(&format!("failed: {UPSTREAM}/a@{}", image.blobs[1].0)) {}
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, given_up).await??;
    upstream.heal();
    ensure!(ask(&["fills", "retry"]).await? == "fills tried again: 1\n");
    ensure!(ask(&["robot", "list"]).await?.starts_with("ops: made "));
    ask(&["robot", "add", "ci"]).await?;
    ensure!(ask(&["gc", "--dry-run"]).await?.contains("nothing was changed"));
    ask(&["purge", &format!("{UPSTREAM}/a:1")]).await?;
    ensure!(ask(&["quota"]).await?.contains(" as anonymous: "), "an operator sees accounts");
    Ok(())
}

/// A request over the socket, as the user of this process.
async fn over(socket: &Path) -> anyhow::Result<String> {
    let mut connection = UnixStream::connect(socket).await?;
    connection.write_all(b"GET /_stopover/fills HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_socket_is_for_the_user_of_the_cache_and_goes_with_it() -> anyhow::Result<()> {
    let installation = Installation::for_upstream("http://127.0.0.1:1")?;
    let socket = operator_socket(&installation.data());
    // What an earlier version has left behind is worth nothing any more.
    let secret = installation.data().join("operator_secret");
    std::fs::write(&secret, "the secret of an earlier version, which has 43 letters")?;
    let stopover = installation.start().await?;
    ensure!(!secret.exists(), "it is removed");
    let metadata = std::fs::metadata(&socket)?;
    ensure!(metadata.file_type().is_socket() && metadata.permissions().mode() & 0o777 == 0o600, "{metadata:?}");
    ensure!(over(&socket).await?.starts_with("HTTP/1.1 200 "));
    // Another process gets neither the directory nor the socket.
    let second = installation.start().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(second.contains("another stopover is using the data directory"), "{second}");
    ensure!(over(&socket).await?.starts_with("HTTP/1.1 200 "));
    // The socket of one that was killed stays, leads nowhere, and is replaced.
    stopover.kill_9().await?;
    ensure!(socket.exists() && over(&socket).await.is_err());
    let stopover = installation.start().await?;
    ensure!(over(&socket).await?.starts_with("HTTP/1.1 200 "));
    ensure!(stopover.terminate(Duration::from_secs(10)).await?.success());
    ensure!(!socket.exists(), "it is removed");
    Ok(())
}

/// Asks for what was given up as another user, for whom the socket was opened by mistake. Root alone may become another user.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_no_operator_even_if_the_socket_lets_it_connect() -> anyhow::Result<()> {
    let installation = Installation::for_upstream("http://127.0.0.1:1")?;
    let stopover = installation.start().await?;
    let (data, socket) = (installation.data(), operator_socket(&installation.data()));
    let directories = data.ancestors().take(2).map(Path::to_owned);
    for (path, mode) in directories.map(|path| (path, 0o755)).chain([(socket, 0o666)]) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    // Where the program was built, others may not look.
    let program = data.with_file_name("stopover");
    write_executable(&program, &std::fs::read(binary()?)?)?;
    let ask = |user: u32| Command::new(&program).uid(user).args(["fills", "retry", "--data-dir"]).arg(&data).output();
    let own = std::fs::metadata("/proc/self")?.uid();
    let answer = ask(own)?;
    ensure!(answer.status.success(), "{answer:?}");
    if own == 0 {
        let answer = ask(65_534)?;
        ensure!(!answer.status.success(), "{answer:?}");
        stopover.until_logged("another user than that of this process was refused as its operator").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_ask_as_an_operator_says_what_to_do() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let killed = directory.path().join("killed");
    std::fs::create_dir(&killed)?;
    drop(std::os::unix::net::UnixListener::bind(operator_socket(&killed))?);
    let (long, killed) = (directory.path().join("long".repeat(30)), killed.display().to_string());
    std::fs::create_dir(&long)?;
    let long = long.display().to_string();
    for (data, words) in [
        ("/nowhere", "cannot ask as an operator at /nowhere/operator.sock: "),
        ("/nowhere", "no cache runs with this data directory"),
        (&killed, "no cache runs with this data directory"),
        (&long, "name a link to the data directory with --data-dir"),
        (&killed, "or a cache with --server and log in as one of the `operators` in its [access]"),
    ] {
        for (command, _) in COMMANDS {
            let (status, text) = run(&[command, &["--data-dir", data]].concat()).await?;
            ensure!(!status.success() && text.contains(words), "{command:?} {data}: {text}");
        }
    }
    let (status, text) = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", &long]).await?;
    ensure!(!status.success() && text.contains("may have 107 bytes") && text.contains("--data-dir"), "{text}");
    // By a link it is short enough.
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&long, &link)?;
    let link = link.display().to_string();
    let mut child = Command::new(binary()?);
    let mut child = child.args(["serve", "--listen", "127.0.0.1:0", "--data-dir", &link]).spawn()?;
    let begun = std::time::Instant::now();
    let mut answered = false;
    while !answered && begun.elapsed() < Duration::from_secs(30) {
        // It says that it listens where another process reads: it is asked until it answers.
        answered = run(&["fills", "retry", "--data-dir", &link]).await?.0.success();
    }
    child.kill()?;
    child.wait()?;
    ensure!(answered);
    Ok(())
}

/// A program that listens at the port of a cache that is down.
#[tokio::test(flavor = "multi_thread")]
async fn what_listens_at_the_address_of_a_cache_gets_no_operators_command() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let installation = Installation::with_configuration(&format!("listen = \"{address}\"\n"))?;
    let (data, file) = (installation.data().display().to_string(), installation.configuration().display().to_string());
    for (command, _) in COMMANDS {
        let (status, text) = run(&[command, &["--config", &file, "--data-dir", &data]].concat()).await?;
        ensure!(!status.success() && text.contains("no cache runs"), "{text}");
    }
    let connected = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
    ensure!(connected.is_err(), "it was asked");
    Ok(())
}
