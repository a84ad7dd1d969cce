//! The page at `/` in Chromium: the real program, an upstream that does as it is told, and pulls.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use stopover::oci::MediaType;
use support::browser::Browser;
use support::program::{Installation, Stopover, UPSTREAM, run};
use support::scripted::{Fault, Scripted};

/// axe-core, which `make setup` installs.
const AXE: &str = "../.venv/lib/python3.11/site-packages/axe_playwright_python/axe.min.js";

/// What is markup where it is not escaped.
const MARKUP: &str = "<script>window.hurt=1</script><img src=x onerror=window.hurt=1>\"'&";

/// Every view, and what it says after the pulls of [`Cache::start`].
const VIEWS: [(&str, &str, &str); 7] = [
    ("now", "/", "Answered from the cache"),
    ("images", "/?view=images", "test.local/team/app"),
    ("image", "/?name=test.local/team/app", "linux/arm64"),
    ("fills", "/?view=fills", "given up"),
    ("risks", "/?view=risks", "pull refused"),
    ("setup", "/?view=setup", "containerd"),
    ("docker", "/?view=setup&client=docker", "registry-mirrors"),
];

/// A cache that has pulled, and a browser.
struct Cache {
    upstream: Scripted,
    stopover: Stopover,
    browser: Browser,
    _installation: Installation,
}

impl Cache {
    /// What is stored, what has failed, and what was refused; the operator is logged in.
    async fn start() -> Result<Self> {
        let upstream = Scripted::start()?;
        let configuration = format!(
            "fresh = \"1h\"\n[access]\nanonymous = true\nrobots = true\noperators = [\"robot:ops\"]\n\
             [upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n",
            upstream.url()
        );
        let installation = Installation::with_configuration(&configuration)?;
        let (stopover, browser) = tokio::try_join!(installation.start(), Browser::start())?;
        let this = Self { upstream, stopover, browser, _installation: installation };
        this.upstream.quota(100, 67);
        let (_, images) = this.upstream.index("team/app", "v1", &["linux/amd64", "linux/arm64"]);
        for number in 0..3 {
            this.upstream.image("team/base", &format!("v{number}"), &[&vec![number; 50_000]]);
            for _ in 0..4 {
                this.pull(&format!("team/base/manifests/v{number}"), 200).await?;
            }
        }
        this.pull("team/app/manifests/v1", 200).await?;
        this.pull(&format!("team/app/manifests/{}", images[0].digest), 200).await?;
        this.fail().await?;
        this.upstream.quota(100, 0);
        this.upstream.image("refused", "v1", &[b"a layer without quota"]);
        this.pull("refused/manifests/v1", 429).await?;
        Ok(this)
    }

    async fn pull(&self, path: &str, status: u16) -> Result<()> {
        let answer = support::get(format!("http://{}/v2/{UPSTREAM}/{path}", self.stopover.address())).await?;
        ensure!(answer.status() == status, "{path}: {}", answer.status());
        Ok(())
    }

    /// An image of which everything that upstream writes is markup, and whose layer is not there.
    async fn fail(&self) -> Result<()> {
        let image = self.upstream.image("hostile", "part", &[b"a layer that is refused"]);
        let body = json!({ "errors": [{ "code": MARKUP, "message": MARKUP }] }).to_string();
        let headers = vec![("www-authenticate", "Basic realm=\"<img src=x onerror=hurt()>\"".to_owned())];
        self.upstream.fault(image.blobs[0].0.as_str(), Fault::Status(403, headers, body));
        self.upstream.fault(image.blobs[1].0.as_str(), Fault::Status(404, vec![], String::new()));
        let platform = json!({ "os": MARKUP, "architecture": MARKUP });
        let annotations = json!({ MARKUP: MARKUP });
        let child = json!({
            "mediaType": MediaType::OciManifest.as_str(), "digest": image.digest, "size": image.manifest.len(),
            "platform": platform, "annotations": annotations,
        });
        let index = json!({ "schemaVersion": 2, "manifests": [child], "annotations": annotations });
        self.upstream.manifest("hostile", "v1", MediaType::OciIndex.as_str(), index.to_string().as_bytes());
        self.pull("hostile/manifests/v1", 200).await?;
        self.pull(&format!("hostile/manifests/{}", image.digest), 200).await?;
        Ok(())
    }

    /// Logs the browser in as an operator.
    async fn log_in(&self) -> Result<()> {
        let (status, text) = self.stopover.run(&["robot", "add", "ops"]).await?;
        ensure!(status.success(), "{text}");
        let secret = super::access::secret_in(&text)?;
        let host = self.stopover.address();
        // The browser keeps it.
        self.browser.open(&format!("http://ops:{secret}@{host}/?view=fills&login=yes")).await?;
        self.browser.until("document.body.innerText.includes('an operator')").await
    }

    async fn open(&self, path: &str) -> Result<()> {
        self.browser.open(&format!("http://{}{path}", self.stopover.address())).await
    }

    async fn until_said(&self, text: &str) -> Result<()> {
        self.browser.until(&format!("document.body.innerText.includes({})", json!(text))).await
    }

    /// That the page has said nothing to the console, asked for nothing but what is live, and nothing of others ran in it.
    async fn check_quiet(&self, of: &str) -> Result<()> {
        let console = self.browser.console().await?;
        ensure!(console.is_empty(), "{of}: {console:?}");
        // What is live is asked for a second after the view and later.
        let asked = "return performance.getEntriesByType('resource')
            .filter(one => one.name !== location.href || one.initiatorType !== 'fetch' || one.startTime < 900)
            .map(one => [one.name, one.initiatorType, one.startTime])";
        let asked = self.browser.run(asked).await?;
        ensure!(asked == json!([]), "{of}: {asked}");
        let hurt = self.browser.run("return window.hurt === 1 || document.querySelectorAll('main img').length").await?;
        ensure!(hurt == 0 || hurt == false, "{of}: {hurt}");
        Ok(())
    }
}

/// What axe-core finds wrong in the page.
async fn violations(browser: &Browser, axe: &str) -> Result<Value> {
    // What is examined stands still.
    let script = "window.fetch = () => new Promise(() => {}); axe.run(document, { resultTypes: ['violations'] }).then(
        found => done(found.violations.map(one => [one.id, one.help, one.nodes.map(node => node.html).slice(0, 3)])),
        error => done(String(error)))";
    browser.run_async(&format!("{axe}; {script}")).await
}

// More than 10 s on a busy machine: seven views, each in two sizes and two colours, and each examined by axe-core.
#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_whole_in_both_sizes_and_colours_and_nothing_in_it_is_wrong() -> Result<()> {
    let cache = Cache::start().await?;
    cache.log_in().await?;
    let (browser, axe) = (&cache.browser, std::fs::read_to_string(AXE).context("axe-core: `make setup` installs it")?);
    cache.open("/?view=fills").await?;
    cache.until_said("given up").await?;
    for (name, path, said) in VIEWS {
        for (width, colours) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
            let of = format!("{name}-{width}-{colours}");
            browser.look(width, colours).await?;
            cache.open(path).await?;
            cache.until_said(said).await?;
            let wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
            ensure!(browser.run(wide).await? == 0, "{of} scrolls sideways");
            let back = browser.run("return getComputedStyle(document.body).backgroundColor").await?;
            ensure!((back == "rgb(20, 24, 27)") == (colours == "dark"), "{of}: {back}");
            // Sizes and colours are looked at once each.
            if (width == 1280) == (colours == "light") {
                let found = violations(browser, &axe).await?;
                ensure!(found == json!([]), "{of}: {found:#}");
                browser.picture(&of).await?;
            }
            cache.check_quiet(&of).await?;
        }
    }
    // What is wrong would be found.
    browser.run("document.body.append(document.createElement('button')); console.error('wrong')").await?;
    let found = violations(browser, &axe).await?;
    ensure!(found.to_string().contains("button-name"), "{found}");
    ensure!(cache.check_quiet("what is wrong").await.is_err(), "the console is not read");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_a_fill_moves_while_upstream_is_slow() -> Result<()> {
    let upstream = Scripted::start()?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let (stopover, browser) = tokio::try_join!(installation.start(), Browser::start())?;
    browser.open(&format!("http://{}/?view=fills", stopover.address())).await?;
    browser.run("window.same = true").await?;
    let image = upstream.image("slow", "v1", &[&vec![7; 2_000_000]]);
    upstream.fault(image.blobs[1].0.as_str(), Fault::Stalled);
    support::get(format!("http://{}/v2/{UPSTREAM}/slow/manifests/v1", stopover.address())).await?;
    // What has arrived, before the other half comes.
    let value = "document.querySelector('progress')?.value";
    browser.until(&format!("{value} > 0 && {value} < 100 && document.body.innerText.includes(' of 2.0 MB')")).await?;
    upstream.heal();
    browser.until("document.body.innerText.includes('Nothing is being copied')").await?;
    ensure!(browser.run("return window.same").await? == true, "the page was loaded anew");
    let console = browser.console().await?;
    ensure!(console.is_empty(), "{console:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_says_that_the_cache_does_not_answer_until_it_does_again() -> Result<()> {
    let installation = Installation::with_configuration("")?;
    let (stopover, browser) = tokio::try_join!(installation.start(), Browser::start())?;
    let address = stopover.address().to_owned();
    browser.open(&format!("http://{address}/?view=fills")).await?;
    browser.run("window.same = true").await?;
    let sign = "document.querySelector('main [role=status]')";
    ensure!(browser.run(&format!("return {sign}.textContent")).await? == "", "there is no trouble yet");
    // What is shown no longer, or stays because it is in use, is old as well.
    let said = |why: &str| format!("{sign}.textContent.startsWith('{why} This was shown at ')");
    browser.run("window.asks = window.fetch; window.fetch = async () => new Response('', { status: 401 })").await?;
    browser.until(&said("The cache does not show this any more: log in again.")).await?;
    let moved = "window.fetch = async () => new Response('<div id=\"live\" data-every=\"1\">new</div>')";
    browser.run(&format!("{moved}; document.getElementById('live').tabIndex = -1; live.focus()")).await?;
    browser.until(&said("What is in use stays as it is.")).await?;
    browser.run("document.activeElement.blur(); window.fetch = window.asks").await?;
    browser.until(&format!("{sign}.textContent === ''")).await?;
    stopover.kill_9().await?;
    let said = format!("{sign}.innerText.startsWith('The cache does not answer. This was shown at ')");
    browser.until(&said).await?;
    ensure!(
        browser.run("return document.body.innerText.includes('Nothing is being copied')").await? == true,
        "it went"
    );
    let installation = installation.listening_on(address.parse()?);
    let _stopover = installation.start().await?;
    browser.until(&format!("{sign}.textContent === '' && {sign}.className === ''")).await?;
    ensure!(browser.run("return window.same").await? == true, "the page was loaded anew");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_filtered_texts_are_copied_and_keys_are_enough() -> Result<()> {
    let cache = Cache::start().await?;
    let browser = &cache.browser;
    cache.open("/?view=images").await?;
    browser.type_into("input[name=prefix]", "test.local/team/a\u{e007}").await?;
    let rows = "document.querySelectorAll('tbody tr').length";
    browser.until(&format!("location.search.includes('prefix=test.local%2Fteam%2Fa') && {rows} === 1")).await?;
    // The first key leads past the navigation, and links are followed by keys.
    browser.press('\u{e004}').await?;
    browser.until("document.activeElement.textContent === 'To the content'").await?;
    browser.press('\u{e007}').await?;
    browser.until("document.activeElement.id === 'main'").await?;
    cache.open("/?view=setup&client=k3s").await?;
    let here = format!("http://{}", cache.stopover.address());
    let permissions = json!({ "origin": here, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"] });
    browser.devtools("Browser.grantPermissions", permissions).await?;
    let printed =
        |server: String| async move { run(&["setup", "k3s", "--upstream", UPSTREAM, "--server", &server]).await };
    let copied = async || -> Result<()> {
        browser.click(".copy button").await?;
        browser.until("document.querySelector('.copy button').textContent === 'Copied'").await
    };
    copied().await?;
    let said = browser.run("return document.querySelector('[role=status]').textContent").await?;
    ensure!(said == "Copied", "{said}");
    let read = browser.run_async("navigator.clipboard.readText().then(done, error => done(String(error)))").await?;
    let (_, text) = printed(here.clone()).await?;
    let of_upstream = text.lines().find(|line| line.contains("/v2/")).context("no endpoint")?;
    ensure!(read.as_str().is_some_and(|read| read.contains(of_upstream) && read.ends_with('\n')), "{read}\n{text}");
    // By a name over HTTP there is no clipboard for pages, and a selection is copied.
    let there = here.replace("127.0.0.1", "cache.test");
    browser.open(&format!("{there}/?view=setup&client=k3s")).await?;
    ensure!(browser.run("return navigator.clipboard === undefined").await? == true, "a secure context");
    copied().await?;
    cache.open("/").await?;
    let read = browser.run_async("navigator.clipboard.readText().then(done, error => done(String(error)))").await?;
    ensure!(read.as_str().is_some_and(|read| read.contains("cache.test:")), "{read}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_script_every_view_says_the_same() -> Result<()> {
    let cache = Cache::start().await?;
    cache.log_in().await?;
    cache.until_said("given up").await?;
    cache.browser.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await?;
    for (name, path, said) in VIEWS {
        cache.open(path).await?;
        cache.until_said(said).await?;
        let buttons = cache.browser.run("return document.querySelectorAll('.copy button').length").await?;
        ensure!(buttons == 0, "{name}: a button that does nothing");
    }
    cache.open("/?view=images").await?;
    cache.browser.click("tbody tr:last-child a").await?;
    cache.until_said("last used").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn markup_of_upstream_is_text_in_every_view() -> Result<()> {
    let cache = Cache::start().await?;
    cache.log_in().await?;
    cache.until_said("given up").await?;
    for path in ["/", "/?view=images", "/?name=test.local/hostile", "/?view=fills", "/?view=risks", "/?view=setup"] {
        cache.open(path).await?;
        cache.check_quiet(path).await?;
    }
    cache.open("/?name=test.local/hostile").await?;
    cache.until_said("<script>window.hurt=1</script>").await?;
    let query = "prefix=%22%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.hurt%3D1%3E";
    cache.open(&format!("/?view=images&{query}")).await?;
    cache.until_said("is the beginning of upstream/name").await?;
    let hurt = cache.browser.run("return window.hurt === 1").await?;
    ensure!(hurt == false, "it ran");
    Ok(())
}
