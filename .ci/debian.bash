# Sourced by the scripts beside it: Debian's packages, unpacked and never
# installed, with an apt state of their own. Needs no root.

state=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/ci
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Says why packages cannot be had, if they cannot: the machine's C library is
# that of its own packages, so nothing else than Debian would do.
debian_lacks() {
  local program
  for program in apt-get dpkg dpkg-deb; do
    command -v "$program" >/dev/null || { echo "no $program here"; return; }
  done
  [ -e "$keyring" ] || { echo 'not Debian: its archive keyring is not here'; return; }
  [ -n "$(mirrors)" ] || echo "no source of Debian's packages is configured"
}

# Where this machine takes Debian's own packages from.
mirrors() {
  local suites='\(bullseye\|bookworm\|trixie\|forky\|sid\|\(old\)*stable\|testing\|unstable\)'
  apt-get update --print-uris | sed -n "s,^'\(.*\)/dists/$suites/InRelease'.*,\1,p" | uniq
}

# own_apt PROGRAM ARCHITECTURE ARGUMENT...: apt-PROGRAM on the state in $folder,
# which has the lists of packages alone: no translations, no descriptions.
own_apt() {
  local program=$1 architecture=$2
  shift 2
  "apt-$program" -qq -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::lists="$folder/lists" \
    -o Dir::Cache="$folder/cache" -o Dir::State::status=/dev/null \
    -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" \
    -o APT::Sandbox::User= -o APT::Update::Error-Mode=any -o Acquire::Retries=2 \
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
    "$@"
}

# update SUITE COMPONENTS ARCHITECTURE: sets $folder to an apt state that knows
# their packages, from the first mirror that has them. COMPONENTS is one word.
update() {
  local mirror
  folder=$state/apt/$1-${2// /+}-$3
  [ -e "$folder/updated" ] && return
  mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
  for mirror in $(mirrors); do
    echo "deb [signed-by=$keyring] $mirror $1 $2" >"$folder/sources.list"
    own_apt get "$3" update && touch "$folder/updated" && return
  done
  return 1
}

# those_of SUITE COMPONENTS ARCHITECTURE PACKAGE...: those of the packages that
# there are, a line each.
those_of() {
  local folder=''
  update "$1" "$2" "$3" || return
  comm -12 <(own_apt cache "$3" pkgnames | sort -u) <(printf '%s\n' "${@:4}" | sort -u)
}

# download SUITE COMPONENTS ARCHITECTURE PACKAGE...: into $folder/deb.
download() {
  update "$1" "$2" "$3" && rm -rf "$folder/deb" && mkdir -p "$folder/deb" &&
    (cd "$folder/deb" && own_apt get "$3" download "${@:4}")
}

# unpack ROOT SUITE COMPONENTS ARCHITECTURE PACKAGE...: the packages' files, in a
# new folder.
unpack() {
  local root=$1 folder='' deb
  shift
  # What was known of the packages may have gone stale since.
  download "$@" || { rm -f "$folder/updated" && download "$@"; } || return
  rm -rf "$root" && mkdir -p "$root" || return
  for deb in "$folder"/deb/*.deb; do
    dpkg-deb -x "$deb" "$root" || return
  done
  rm -rf "$folder/deb"
}
