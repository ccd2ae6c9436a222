//! A headless Chromium, driven over the DevTools protocol through a pair of pipes.
//!
//! ```text
//! --remote-debugging-pipe: commands on descriptor 3, answers and events on 4; JSON, each ended by a zero byte
//! ```

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    process::Command,
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use sekiwake_testkit::{netns::Namespace, process::Process, wait::wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program, of Debian's package of the same name.
const CHROMIUM: &str = "chromium";
/// Messages of the browser that wait for the test; it waits when there are more.
const MESSAGES: usize = 65_536;
/// Time limit of an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Browser {
    commands: File,
    messages: Receiver<Value>,
    session: String,
    next_id: u64,
    requests: Vec<String>,
    complaints: Vec<String>,
    // Dropped last: the profile is in use until the browser has ended.
    process: Process,
    _folder: TempDir,
}

/// How the page is shown.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// The user prefers dark colours.
    pub is_dark: bool,
}

/// The page as assistive technology sees it.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    order: Vec<String>,
}

#[derive(Debug)]
struct Node {
    role: String,
    name: String,
    children: Vec<String>,
}

/// Whether the browser is installed.
///
/// # Errors
/// It cannot be run.
pub fn has_browser() -> anyhow::Result<()> {
    let output = Command::new(CHROMIUM).arg("--version").output().context("chromium is not installed")?;
    ensure!(output.status.success(), "chromium does not run");
    Ok(())
}

impl Browser {
    /// Starts a browser inside a namespace.
    pub fn start(namespace: &Namespace) -> anyhow::Result<Browser> {
        let folder = tempfile::tempdir()?;
        let [input, output] = ["in", "out"].map(|name| folder.path().join(name));
        for path in [&input, &output] {
            ensure!(Command::new("mkfifo").arg(path).status()?.success(), "cannot make a pipe");
        }
        let mut command = namespace.command("sh");
        command.arg("-c").arg(format!(
            "exec {CHROMIUM} --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
             --disable-background-networking --disable-component-update --hide-scrollbars --lang=en-GB \
             --user-data-dir=\"$1/profile\" --remote-debugging-pipe about:blank 3<\"$1/in\" 4>\"$1/out\""
        ));
        command.arg("sh").arg(folder.path()).env("TZ", "Asia/Kolkata").env("HOME", folder.path());
        let process = Process::spawn(command)?;
        let commands = OpenOptions::new().write(true).open(&input)?;
        let answers = File::open(&output)?;
        let (sender, messages) = sync_channel(MESSAGES);
        thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { continue };
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Browser {
            commands,
            messages,
            session: String::new(),
            next_id: 0,
            requests: Vec::new(),
            complaints: Vec::new(),
            process,
            _folder: folder,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }))?;
        browser.session = attached["sessionId"].as_str().context("no session")?.to_owned();
        for domain in ["Page", "Network", "Runtime", "Log", "Accessibility", "DOM"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Sends a command and waits for its answer.
    fn call(&mut self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        self.next_id += 1;
        let mut message = json!({ "id": self.next_id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        self.commands.write_all(message.to_string().as_bytes())?;
        self.commands.write_all(&[0])?;
        loop {
            let message = self.messages.recv_timeout(ANSWER);
            let message = message.with_context(|| format!("{method}: {}", self.process.stderr().join("\n")))?;
            if message["id"].as_u64() == Some(self.next_id) {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
            self.note(&message);
        }
    }

    /// Keeps what a page requests and what the browser complains about.
    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.push(parameters["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            Some("Log.entryAdded") => {
                let entry = &parameters["entry"];
                self.complaints.push(format!("{}: {} {}", entry["level"], entry["text"], entry["url"]));
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters["exceptionDetails"].to_string()),
            _ => {}
        }
    }

    /// Opens an address and waits until it is loaded.
    pub fn open(&mut self, url: &str) -> anyhow::Result<()> {
        let result = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(result["errorText"].is_null(), "{url}: {result}");
        let mut failed = Ok(());
        wait_for(&format!("{url} to load"), ANSWER, || {
            let state = self.evaluate("location.href != 'about:blank' && document.readyState");
            match state {
                Ok(state) => state == "complete",
                Err(error) => {
                    failed = Err(error);
                    true
                }
            }
        })?;
        failed
    }

    /// Changes the size and the colours.
    pub fn show_on(&mut self, screen: Screen) -> anyhow::Result<()> {
        let Screen { width, height, is_dark } = screen;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features).map(drop)
    }

    /// The value of an expression, which may be a promise.
    pub fn evaluate(&mut self, expression: &str) -> anyhow::Result<Value> {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", parameters)?;
        if !result["exceptionDetails"].is_null() {
            bail!("{}", result["exceptionDetails"]);
        }
        Ok(result["result"]["value"].clone())
    }

    /// Presses a key, as `Tab` or `a`, with its virtual key code.
    pub fn press(&mut self, key: &str, code: u32) -> anyhow::Result<()> {
        for kind in ["keyDown", "keyUp"] {
            let text = match key {
                _ if kind == "keyUp" => "",
                "Enter" => "\r",
                key if key.len() == 1 => key,
                _ => "",
            };
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// The text of the page.
    pub fn text(&mut self) -> anyhow::Result<String> {
        Ok(self.evaluate("document.body.innerText")?.as_str().unwrap_or_default().to_owned())
    }

    /// The accessibility tree.
    pub fn tree(&mut self) -> anyhow::Result<Tree> {
        let result = self.call("Accessibility.getFullAXTree", json!({}))?;
        let mut tree = Tree { nodes: BTreeMap::new(), order: Vec::new() };
        for node in result["nodes"].as_array().context("no nodes")? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let children = node["childIds"].as_array().into_iter().flatten().map(text).collect();
            let id = text(&node["nodeId"]);
            let (role, name) = (text(&node["role"]["value"]), text(&node["name"]["value"]));
            tree.order.push(id.clone());
            tree.nodes.insert(id, Node { role, name, children });
        }
        Ok(tree)
    }

    /// A picture of what is visible: PNG.
    pub fn picture(&mut self) -> anyhow::Result<Vec<u8>> {
        let result = self.call("Page.captureScreenshot", json!({ "format": "png", "optimizeForSpeed": false }))?;
        Ok(STANDARD.decode(result["data"].as_str().context("no picture")?)?)
    }

    /// The addresses that the page has requested so far.
    pub fn requests(&self) -> &[String] {
        &self.requests
    }

    /// What the browser has complained about so far: errors of scripts, and what a policy forbids.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }
}

impl Tree {
    /// The rows of the table of this name, each with the texts of its cells; without the heading.
    pub fn table(&self, name: &str) -> Vec<Vec<String>> {
        let table = self.order.iter().find(|id| {
            let node = &self.nodes[*id];
            node.role == "table" && node.name == name
        });
        let Some(table) = table else { return Vec::new() };
        let mut rows = Vec::new();
        self.collect(table, "row", &mut rows);
        let cells = rows.iter().map(|row| {
            let mut cells = Vec::new();
            for role in ["cell", "gridcell", "rowheader"] {
                self.collect(row, role, &mut cells);
            }
            // In their order on the page.
            let place = |id: &&str| self.order.iter().position(|other| other == id);
            cells.sort_by_key(place);
            cells.iter().map(|cell| self.text(cell)).collect::<Vec<String>>()
        });
        cells.filter(|cells| !cells.is_empty()).collect()
    }

    /// The cells of the first row of this table whose cells satisfy a condition.
    pub fn row(&self, table: &str, condition: impl Fn(&[String]) -> bool) -> Option<Vec<String>> {
        self.table(table).into_iter().find(|cells| condition(cells))
    }

    /// The texts of all elements with this role.
    pub fn texts(&self, role: &str) -> Vec<String> {
        let with_role = self.order.iter().filter(|id| self.nodes[*id].role == role);
        with_role.map(|id| self.text(id)).collect()
    }

    fn collect<'a>(&'a self, id: &str, role: &str, out: &mut Vec<&'a str>) {
        let Some(node) = self.nodes.get(id) else { return };
        for child in &node.children {
            match self.nodes.get(child) {
                Some(found) if found.role == role => out.push(child),
                Some(_) => self.collect(child, role, out),
                None => {}
            }
        }
    }

    fn text(&self, id: &str) -> String {
        let mut text = String::new();
        self.append(id, &mut text);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn append(&self, id: &str, out: &mut String) {
        let Some(node) = self.nodes.get(id) else { return };
        if node.role == "StaticText" {
            out.push_str(&node.name);
            return;
        }
        node.children.iter().for_each(|child| self.append(child, out));
    }
}
