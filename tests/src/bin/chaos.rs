//! `make chaos`: outages between the parties and the proxy, faults of NATS servers, and rolling
//! updates, under load, and the fate of every datagram. Prints tables.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use sekiwake_testkit::netns::requires_root_and_netns;
use sekiwake_tests::{
    nats::nats_or_skipped,
    outage::{Account, Outage, OutageSite, Parties, Plane, Update, UpdateAccount},
    servers::{Fault, FaultAccount, ServersSite},
};

/// How long the parties may take to find a proxy whose address has changed.
const MOVE_LIMIT: Duration = Duration::from_secs(5);

/// How long a member acts without a commit. What it has handled since the last one may be handled
/// twice.
const UNCOMMITTED: Duration = Duration::from_secs(3);

/// How often a row is measured on a machine that is too slow.
const ATTEMPTS: usize = 3;

#[derive(Parser)]
#[command(about = "Outages of control, data and both under load, and the fate of every datagram")]
struct Arguments {
    /// Datagrams per second
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
    /// Only outages of these many seconds, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [5_u64, 30, 90])]
    seconds: Vec<u64>,
    /// Only rows that contain this text
    #[arg(long, default_value = "")]
    only: String,
    /// Instead of outages: rolling updates from another version, whose binaries are in this
    /// directory, and back
    #[arg(long)]
    old: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(why) = requires_root_and_netns() {
        eprintln!("chaos requires root and network namespaces: {why}");
        return ExitCode::FAILURE;
    }
    let failed = match &arguments.old {
        Some(old) => updates(&arguments, old),
        None => outages(&arguments) | moves(&arguments) | faults(&arguments),
    };
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs the outages and prints their table. Returns whether any has failed.
fn outages(arguments: &Arguments) -> bool {
    println!(
        "| plane | parties | outage | proxy | retention | rate/s | sent | missing | counted | of these unknown | duplicates | recovery | |"
    );
    println!("|---|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---|");
    let mut failed = false;
    for outage in matrix(arguments) {
        if !outage.to_string().contains(&arguments.only) {
            continue;
        }
        let account = match measure(&outage) {
            Ok(account) => account,
            Err(error) => {
                println!("| {outage} | | | | | | | {error:#} |");
                failed = true;
                continue;
            }
        };
        let Account { sent, missing, duplicates, unknown, unpublished, dropped, recovery, .. } = account;
        let (counted, seconds) = (account.counted(), recovery.as_secs_f32());
        let note = match verdict(&outage, &account) {
            None => "ok".to_owned(),
            Some(fault) => {
                failed = true;
                format!("{fault} ({unpublished} unpublished, {dropped} dropped by forwarders)")
            }
        };
        println!("| {outage} | {sent} | {missing} | {counted} | {unknown} | {duplicates} | {seconds:.1} s | {note} |");
    }
    failed
}

/// Runs an outage, and again if the forwarders were too slow: then the machine was measured.
fn measure(outage: &Outage) -> anyhow::Result<Account> {
    let mut account = OutageSite::new()?.run(outage)?;
    for _ in 1..ATTEMPTS {
        if account.dropped == 0 {
            break;
        }
        eprintln!("{outage}: the forwarders dropped {} datagrams, measured again", account.dropped);
        account = OutageSite::new()?.run(outage)?;
    }
    Ok(account)
}

/// Runs the rolling updates and prints their table. Returns whether any has failed.
fn updates(arguments: &Arguments, old: &Path) -> bool {
    println!(
        "| order | rate/s | sent | missing | counted there | counted back | of these unknown | duplicates | slowest step | |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|");
    let mut failed = false;
    for update in Update::orders(arguments.rate).into_iter().filter(|row| row.to_string().contains(&arguments.only)) {
        match OutageSite::new().and_then(|site| site.update(&update, old)) {
            Ok(account) => {
                let UpdateAccount { sent, missing, duplicates, slowest, .. } = account;
                let UpdateAccount { counted_there, counted_back, unknown_back, .. } = account;
                let fault = update_fault(&account);
                println!(
                    "| {update} | {sent} | {missing} | {counted_there} | {counted_back} | {unknown_back} | {duplicates} | {:.1} s | {} |",
                    slowest.as_secs_f32(),
                    fault.unwrap_or("ok")
                );
                failed |= fault.is_some();
            }
            Err(error) => {
                println!("| {update} | | | | | | | | {error:#} |");
                failed = true;
            }
        }
    }
    failed
}

/// The fault of an update, if any. An old proxy that starts does not take positions in streams that
/// have ended, so on the way back members may not know where their group was.
fn update_fault(account: &UpdateAccount) -> Option<&'static str> {
    if account.missing > 0 {
        return Some("missing");
    }
    (account.counted_there > 0 || account.counted_back > account.unknown_back).then_some("counted, but not missing")
}

/// Moves the proxy's name to another address, and prints the row. Returns whether it has failed.
fn moves(arguments: &Arguments) -> bool {
    let row = "moved | all | 10 s";
    if !row.contains(&arguments.only) {
        return false;
    }
    let result = OutageSite::new().and_then(|site| site.move_proxy(Duration::from_secs(10), arguments.rate));
    let (recovery, verdict) = match result {
        Ok(recovery) if recovery < MOVE_LIMIT => (format!("{:.1} s", recovery.as_secs_f32()), "ok".to_owned()),
        Ok(recovery) => (format!("{:.1} s", recovery.as_secs_f32()), "the move took too long".to_owned()),
        Err(error) => (String::new(), format!("{error:#}")),
    };
    println!("| {row} | new address | 1GiB | {} | | | | | | {recovery} | {verdict} |", arguments.rate);
    verdict != "ok"
}

/// Lets parts of a cluster of NATS servers and its clients fail, and prints the table. Returns
/// whether any row has failed.
fn faults(arguments: &Arguments) -> bool {
    let row = |fault: &Fault| {
        let seconds = match fault {
            Fault::RollingRestart => 0,
            Fault::AllKilled => 5,
            Fault::TwoKilled | Fault::FullDisk => 20,
            _ => 10,
        };
        (*fault, Duration::from_secs(seconds))
    };
    let name = |fault: &Fault| format!("servers | {fault}");
    let rows: Vec<(Fault, Duration)> =
        Fault::ALL.iter().filter(|fault| name(fault).contains(&arguments.only)).map(row).collect();
    if rows.is_empty() || !nats_or_skipped() {
        return false;
    }
    println!(
        "\n| fault | time | rate/s | sent | missing | counted | out of order | duplicates | silence | recovery | |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|");
    let mut failed = false;
    for (fault, time) in rows {
        let (seconds, rate) = (time.as_secs(), arguments.rate);
        match ServersSite::new().and_then(|site| site.run(fault, time, rate)) {
            Ok(account) => {
                let FaultAccount { sent, missing, lost, out_of_order, duplicates, silence, recovery, .. } = account;
                let (silence, recovery) = (silence.as_secs_f32(), recovery.as_secs_f32());
                let found = fault_of(fault, &account, rate);
                println!(
                    "| {fault} | {seconds} s | {rate} | {sent} | {missing} | {lost} | {out_of_order} | {duplicates} | {silence:.1} s | {recovery:.1} s | {} |",
                    found.as_deref().unwrap_or("ok")
                );
                failed |= found.is_some();
            }
            Err(error) => {
                println!("| {fault} | {seconds} s | {rate} | | | | | | | | {error:#} |");
                failed = true;
            }
        }
    }
    failed
}

/// What an account breaks of what is promised, if anything.
fn fault_of(fault: Fault, account: &FaultAccount, rate: u64) -> Option<String> {
    let FaultAccount { missing, lost, out_of_order, duplicates, unpublished, dropped, .. } = *account;
    if missing > 0 || lost > 0 {
        return Some(format!("missing ({unpublished} unpublished, {dropped} dropped by forwarders)"));
    }
    if out_of_order > 0 {
        return Some("out of order".to_owned());
    }
    (duplicates > rate * UNCOMMITTED.as_secs() * fault.members_hit()).then(|| "too many duplicates".to_owned())
}

/// Every combination. 90 s is for all parties together; short retention for outages of 30 s.
fn matrix(arguments: &Arguments) -> Vec<Outage> {
    let mut rows = Vec::new();
    for retain in ["4GiB", "16MiB"] {
        for &seconds in &arguments.seconds {
            for parties in [Parties::Member, Parties::Capture, Parties::All] {
                if (seconds > 30 && parties != Parties::All) || (retain == "16MiB" && seconds != 30) {
                    continue;
                }
                for plane in [Plane::Control, Plane::Data, Plane::Both] {
                    for proxy_restart in [false, true] {
                        let duration = Duration::from_secs(seconds);
                        rows.push(Outage { plane, parties, duration, proxy_restart, retain, rate: arguments.rate });
                    }
                }
            }
        }
    }
    rows
}

/// The fault of an outage, if any.
fn verdict(outage: &Outage, account: &Account) -> Option<&'static str> {
    if account.missing != account.counted() {
        return Some("missing differs from counted");
    }
    (outage.retain == "4GiB" && account.missing > 0).then_some("missing, although retained")
}
