//! A function: its process, started when needed, one invocation at a time.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    sync::{oneshot, watch},
};

use super::{
    FunctionError, REGION, lineage,
    runtime_api::{Phase, RuntimeApi},
};
use crate::loopback::Loopback;
use crate::secrets;

/// Lambda's limit on the time until a process asks for its first event.
const INIT_LIMIT: Duration = Duration::from_secs(10);
/// The longest a front end waits for a function anyway.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of an event.
const MAX_EVENT: usize = 6 * 1024 * 1024;
const MEMORY_MEGABYTES: u32 = 256;
/// Lambda waits half a second for a process that is told of its end. A busy machine has more time.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// A function with one sandbox. Dropping it kills the process and waits until it is dead.
pub struct Function(Arc<Sandbox>);

impl Function {
    /// Starts the binary and waits until it asks for work. Invocations may take 30 seconds.
    ///
    /// # Errors
    /// It cannot be run, exits, reports an init error or does not get ready in 10 seconds; the error has its log.
    pub async fn start(bootstrap: &Path, environment: &[(String, String)]) -> anyhow::Result<Self> {
        Self::start_with_timeout(bootstrap, environment, DEFAULT_TIMEOUT).await
    }

    /// As [`Self::start`], with the function's timeout.
    pub async fn start_with_timeout(
        bootstrap: &Path,
        environment: &[(String, String)],
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let loopback = Loopback::new("lambda-runtime")?;
        // A package is a directory with the name of its function.
        let packaged = bootstrap.file_name().is_some_and(|name| name == "bootstrap");
        let named = if packaged { bootstrap.parent() } else { Some(bootstrap) };
        let name = named.and_then(Path::file_name).unwrap_or(bootstrap.as_os_str()).to_string_lossy();
        let api = Arc::new(RuntimeApi::new(&name));
        let (listener, address) = loopback.bind()?;
        loopback.serve(listener, api.router());
        let sandbox = Arc::new(Sandbox {
            bootstrap: bootstrap.canonicalize().with_context(|| format!("no function at {}", bootstrap.display()))?,
            name: name.into_owned(),
            environment: environment.to_vec(),
            address: address.to_string(),
            timeout,
            log: tempfile::NamedTempFile::new()?,
            api,
            process: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            closed: AtomicBool::default(),
            loopback,
        });
        let function = Self(sandbox);
        function.0.ready().await?;
        Ok(function)
    }

    /// Runs one event through the function; callers queue up.
    ///
    /// # Errors
    /// The function reported an error, died, took too long (it is killed then) or answered too much.
    pub async fn invoke(&self, event: Value) -> Result<Value, FunctionError> {
        self.0.invoke(event).await
    }

    /// Everything the process has written to standard output and standard error.
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// The most memory of its process that was ever resident, in bytes (`VmHWM`).
    pub fn peak_resident_bytes(&self) -> anyhow::Result<u64> {
        crate::program::peak_resident_bytes(self.0.process_id()?)
    }

    /// Stops its process, as Lambda freezes one between invocations. Time goes on meanwhile.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.0.signal("STOP")
    }

    /// Lets its process go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.0.signal("CONT")
    }

    /// Ends its process as Lambda does when it is used no more: one that has an extension is told, and has half a second.
    ///
    /// # Errors
    /// It is not told, or does not end in time.
    pub async fn shut_down(&self) -> anyhow::Result<()> {
        self.0.shut_down().await
    }

    /// The id of its process.
    ///
    /// # Errors
    /// It does not run.
    pub fn process(&self) -> anyhow::Result<u32> {
        self.0.process_id()
    }

    pub(super) fn sandbox(&self) -> Arc<Sandbox> {
        Arc::clone(&self.0)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.kill();
        self.0.log().lines().for_each(secrets::see);
        drop(secrets::Watched);
    }
}

/// A running process: how to end it, and how to learn that it has ended.
struct Process {
    id: Option<u32>,
    kill: Option<oneshot::Sender<mpsc::Sender<()>>>,
    ended: watch::Receiver<Option<String>>,
}

pub(super) struct Sandbox {
    bootstrap: PathBuf,
    name: String,
    environment: Vec<(String, String)>,
    address: String,
    timeout: Duration,
    log: tempfile::NamedTempFile,
    api: Arc<RuntimeApi>,
    process: Mutex<Option<Process>>,
    turn: tokio::sync::Mutex<()>,
    /// Dropped: a caller that still waits for its turn must not start the process again.
    closed: AtomicBool,
    loopback: Loopback,
}

impl Sandbox {
    pub(super) async fn invoke(&self, event: Value) -> Result<Value, FunctionError> {
        self.invoke_traced(event, lineage::first()).await
    }

    /// As [`Self::invoke`], as part of a chain of invocations.
    pub(super) async fn invoke_traced(&self, event: Value, trace: String) -> Result<Value, FunctionError> {
        let event = Bytes::from(event.to_string());
        if event.len() > MAX_EVENT {
            let message = format!("{} byte payload is too large for the RequestResponse invocation type", event.len());
            return Err(FunctionError { invoked: false, ..FunctionError::new("RequestEntityTooLarge", message) });
        }
        let _turn = self.turn.lock().await;
        let mut ended =
            self.ready().await.map_err(|error| FunctionError::new("Runtime.InitError", format!("{error:#}")))?;
        let reply = self.api.hand_in(event, trace, self.timeout);
        let died = async {
            let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| status.clone());
            status.unwrap_or_default()
        };
        tokio::select! {
            biased;
            Ok(reply) = reply => reply,
            status = died => Err(self.show_death(FunctionError::new("Runtime.ExitError", status))),
            () = tokio::time::sleep(self.timeout) => {
                self.kill();
                let message = format!("Task timed out after {} seconds", self.timeout.as_secs_f32());
                Err(self.show_death(FunctionError::new("Sandbox.Timedout", message)))
            }
        }
    }

    /// Starts a process if none runs, and waits until it asks for work.
    async fn ready(&self) -> anyhow::Result<watch::Receiver<Option<String>>> {
        let running = {
            let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            process.as_ref().map(|process| process.ended.clone()).filter(|ended| ended.borrow().is_none())
        };
        if let Some(ended) = running {
            return Ok(ended);
        }
        self.api.reset();
        let mut phase = self.api.phase.subscribe();
        let mut ended = self.spawn()?;
        let failure = tokio::select! {
            biased;
            phase = phase.wait_for(|phase| *phase != Phase::Starting) => match &*phase? {
                Phase::Ready | Phase::Starting => None,
                Phase::InitFailed(report) => Some(report.clone()),
            },
            status = ended.wait_for(Option::is_some) => status?.clone(),
            () = tokio::time::sleep(INIT_LIMIT) => Some(format!("not ready after {} seconds", INIT_LIMIT.as_secs())),
        };
        match failure {
            None => Ok(ended),
            Some(failure) => {
                self.kill();
                Err(anyhow::anyhow!("{}: {failure}; its log:\n{}", self.bootstrap.display(), self.log()))
            }
        }
    }

    fn spawn(&self) -> anyhow::Result<watch::Receiver<Option<String>>> {
        let log = self.log.as_file();
        let root = self.bootstrap.parent().unwrap_or(Path::new("/"));
        let mut command = Command::new(&self.bootstrap);
        // Nothing of this process's environment may help or mislead the function.
        command
            .env_clear()
            .envs([("PATH", "/usr/local/bin:/usr/bin:/bin:/opt/bin"), ("LANG", "en_US.UTF-8"), ("TZ", ":UTC")])
            .env("AWS_REGION", REGION)
            .env("AWS_DEFAULT_REGION", REGION)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("AWS_LAMBDA_RUNTIME_API", &self.address)
            .env("AWS_LAMBDA_FUNCTION_NAME", &self.name)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", MEMORY_MEGABYTES.to_string())
            .env("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
            .env("AWS_LAMBDA_LOG_FORMAT", "JSON")
            .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", self.name))
            .env("AWS_LAMBDA_LOG_STREAM_NAME", "tests")
            .env("LAMBDA_TASK_ROOT", root)
            .env("_HANDLER", "bootstrap")
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .kill_on_drop(true);
        let (kill, killed) = oneshot::channel();
        let (report, ended) = watch::channel(None);
        let (started, start) = mpsc::channel();
        self.loopback.spawn(async move {
            // Spawned here, so that its end is noticed even while the test's own runtime is blocked.
            match command.spawn() {
                Ok(child) => {
                    let _ = started.send(Ok(child.id()));
                    supervise(child, killed, report).await;
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        });
        let id = start.recv()?.with_context(|| format!("cannot run {}", self.bootstrap.display()))?;
        let process = Process { id, kill: Some(kill), ended: ended.clone() };
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        if self.closed.load(Ordering::SeqCst) {
            self.kill();
            anyhow::bail!("the function was dropped");
        }
        Ok(ended)
    }

    fn process_id(&self) -> anyhow::Result<u32> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.as_ref().and_then(|running| running.id).context("the function does not run")
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let process = self.process_id()?.to_string();
        let status = std::process::Command::new("kill").args(["-s", signal, &process]).status()?;
        anyhow::ensure!(status.success(), "kill -s {signal} {process}: {status}");
        Ok(())
    }

    async fn shut_down(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.api.is_told(), "it has no extension: Lambda kills it without a word");
        let ended = {
            let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            process.as_ref().map(|process| process.ended.clone())
        };
        let mut ended = ended.context("the function does not run")?;
        self.signal("TERM")?;
        let ended = tokio::time::timeout(SHUTDOWN, ended.wait_for(Option::is_some)).await;
        let ended = ended.with_context(|| format!("it has not ended; its log:\n{}", self.log()))??;
        anyhow::ensure!(ended.as_deref() == Some("Runtime exited: exit status: 0"), "{ended:?}: {}", self.log());
        Ok(())
    }

    /// Kills the process, if there is one, and returns when it is dead.
    fn kill(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(kill) = process.and_then(|mut process| process.kill.take()) {
            let (confirm, confirmed) = mpsc::channel();
            if kill.send(confirm).is_ok() {
                // The supervisor runs on other threads; an error says that it is gone already.
                let _ = confirmed.recv_timeout(INIT_LIMIT);
            }
        }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log.path()).unwrap_or_default()).into_owned()
    }

    fn show_death(&self, error: FunctionError) -> FunctionError {
        eprintln!("function {} ended: {error}; its log:\n{}", self.name, self.log());
        error
    }
}

async fn supervise(
    mut child: Child,
    killed: oneshot::Receiver<mpsc::Sender<()>>,
    report: watch::Sender<Option<String>>,
) {
    let confirm = tokio::select! {
        status = child.wait() => {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            report.send_replace(Some(format!("Runtime exited: {status}")));
            return;
        }
        confirm = killed => confirm,
    };
    let _ = child.kill().await;
    report.send_replace(Some("killed".to_owned()));
    if let Ok(confirm) = confirm {
        let _ = confirm.send(());
    }
}
