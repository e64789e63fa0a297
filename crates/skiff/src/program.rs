//! The name this binary was called by. As `minikube` (a link) it answers the same commands, and its cluster, context and
//! node are called `minikube` unless another profile is named, so that scripts and muscle memory keep working.

/// `minikube` when called so, else `skiff`.
pub fn name() -> &'static str {
    let called = std::env::args_os().next().unwrap_or_default();
    let file = std::path::Path::new(&called).file_name().and_then(|f| f.to_str());
    if file == Some("minikube") { "minikube" } else { "skiff" }
}

/// Whether scripts of minikube may be reading what we print.
pub fn is_minikube() -> bool {
    name() == "minikube"
}

/// The command line that does `words` to a cluster, as advice: `sudo skiff start -p dev`.
pub fn advice(words: &str, profile: &str) -> String {
    let flag = if profile == name() { String::new() } else { format!(" -p {profile}") };
    format!("sudo {} {words}{flag}", name())
}

/// The candidate that was probably meant by `word`: a third of it wrong at most, letters that changed places once wrong.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let far = |candidate: &&str| strsim::damerau_levenshtein(word, candidate);
    let limit = (word.chars().count() / 3).max(1);
    candidates.into_iter().filter(|candidate| far(candidate) <= limit).min_by_key(far)
}

/// `; did you mean "dev"?`, or nothing.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
}

/// The first of these programs that is on the PATH.
pub fn on_path(programs: &[&'static str]) -> Option<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    programs.iter().copied().find(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["dev", "minikube", "staging"];
        assert_eq!(nearest("minkube", names), Some("minikube"));
        assert_eq!(nearest("stagin", names), Some("staging"));
        assert_eq!(nearest("xyz", names), None);
        assert_eq!(did_you_mean("dve", ["dev"]), "; did you mean \"dev\"?");
    }
}
