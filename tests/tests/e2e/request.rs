//! Mistakes in the request: told by sbatch, with their code, before anything is queued.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use burstfs_tests::{Scenario, scenario};

/// sbatch refuses `directives` with a message that has all of `words`, and with the exit status of a bad option.
fn refuses(s: &Scenario<'_>, directives: &[&str], words: &[&str]) -> Result<()> {
    let job = directives.iter().fold(s.job("alice")?.nodes(2), |job, directive| job.burstfs(*directive));
    let refusal = job.refused()?;
    for word in words {
        ensure!(refusal.message.contains(word), "{directives:?}: no \"{word}\" in:\n{}", refusal.message);
    }
    ensure!(refusal.status == 255, "{directives:?}: exit status {}", refusal.status);
    ensure!(!refusal.message.contains("plugin"), "{directives:?}: not the user's matter:\n{}", refusal.message);
    Ok(())
}

#[test]
fn mistakes_are_refused_by_sbatch() -> Result<()> {
    scenario("refused", |s| {
        refuses(s, &["capcity=4GiB"], &["E102", "did you mean \"capacity\"?", "^^^^^^^"])?;
        refuses(s, &["capacity=4"], &["E104"])?;
        refuses(s, &["capacity=4XiB"], &["E104"])?;
        refuses(s, &["capacity=1GiB capacity=2GiB"], &["E105"])?;
        refuses(s, &["capacity=100MiB per_node=100MiB"], &["E106"])?;
        refuses(s, &["capacity=100MiB", "stage_in source=in destination=/in"], &["E107"])?;
        refuses(s, &["capacity=100MiB", "stage_out source=/../x destination=/pfs/alice/x"], &["E107"])?;
        refuses(s, &["capacity=100MiB layout=striped:count=0"], &["E103", "number of stripes"])?;
        let long = "stage_out source=/out destination=/pfs/alice/out retain=99days";
        refuses(s, &["capacity=100MiB", long], &["E103", "longer than this site keeps"])?;
        refuses(s, &["capacity=100MiB mode=private"], &["E108"])?;
        let stage = "stage_in source=/pfs/alice destination=/in";
        for (item, code) in [("bwlimit=5", "E104"), ("exclude=[a", "E103"), ("type=list", "E106"), ("includ=x", "E102")]
        {
            refuses(s, &["capacity=100MiB", &format!("{stage} {item}")], &[code, "^"])?;
        }
        refuses(s, &["no_such_profile"], &["E109"])?;
        refuses(s, &["stage_out source=/out"], &["E10"])?;
        refuses(s, &["capacity='4GiB"], &["E101"])?;
        refuses(s, &["capacity=100TiB"], &["E113"])
    })
}

#[test]
fn paths_that_cannot_work_are_refused_by_sbatch() -> Result<()> {
    scenario("paths", |s| {
        let dir = s.dir("alice")?;
        let missing = format!("stage_in source={dir}/missing/ destination=/in");
        refuses(s, &["capacity=100MiB", &missing], &["E111", "missing"])?;
        let pattern = format!("stage_in source={dir}/missing/*.dat destination=/in");
        refuses(s, &["capacity=100MiB", &pattern], &["E111", "missing"])?;
        let secret = s.path("bob")?.join("secret");
        fs::write(&secret, "bob's")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        let forbidden = format!("stage_in source={}/secret destination=/in", s.dir("bob")?);
        refuses(s, &["capacity=100MiB", &forbidden], &["E111"])?;
        let foreign = format!("stage_out source=/out/ destination={}/out", s.dir("bob")?);
        refuses(s, &["capacity=100MiB", &foreign], &["E112"])?;
        refuses(s, &["capacity=100MiB", "stage_out source=/out/ destination=/usr/out"], &["E112"])
    })
}

#[test]
fn the_command_line_overrides_the_script() -> Result<()> {
    scenario("override", |s| {
        let job = s.job("alice")?.nodes(1).burstfs("capacity=100MiB").option("--burstfs=200MiB");
        let job = job.script("echo capacity $BURSTFS_CAPACITY_BYTES").submit()?;
        job.wait_success(burstfs_tests::SOON)?;
        ensure!(job.output()?.contains("capacity 209715200"), "{}", job.output()?);
        let job = s.job("alice")?.nodes(1).burstfs("capacity=100MiB").option("--burstfs=none");
        let job = job.script("echo \"none [$BURSTFS]\"").submit()?;
        job.wait_success(burstfs_tests::SOON)?;
        ensure!(job.output()?.contains("none []"), "{}", job.output()?);
        Ok(())
    })
}

#[test]
fn a_request_forged_past_sbatch_is_refused_on_the_node() -> Result<()> {
    scenario("forged", |s| {
        s.allow_failed_start("E2");
        // The environment of sbatch becomes the job's SPANK environment: this is the request without the plugin's check.
        let forged = r#"SLURM_SPANK_BURSTFS_SPEC={"version":1}"#;
        let job = s.job("alice")?.nodes(2).environment(forged).script("echo \"ran with [$BURSTFS]\"").submit()?;
        let state = job.wait_end(burstfs_tests::SOON)?;
        let output = job.output()?;
        // Either nobody takes it for a request, or it is one and is refused: never half a file system.
        let is_ignored = state == "COMPLETED" && output.contains("ran with []");
        let is_refused = state == "FAILED" && output.contains("burstfs: E2") && !output.contains("ran with");
        ensure!(is_ignored || is_refused, "{state}: {output}");
        Ok(())
    })
}
