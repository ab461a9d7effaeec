# The part of a script that points apt to a release of Debian, without changes to the machine.

# The first mirror in the files of apt. Debian's key is in the same place on every Debian.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
    grep -v '^#' | grep -o 'https\{0,1\}://[^ ]*/debian/\{0,1\}\( \|$\)' | head -n 1 | tr -d ' ')
[ -n "$mirror" ] || { echo "apt on this machine has no mirror of Debian" >&2; exit 1; }

# use_release APT RELEASE ARCHITECTURE...
#
# Points apt to a release, with the files of apt in the folder APT. Packages are downloaded to APT/archives.
use_release() {
    apt=$1
    release=$2
    shift 2
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    : > "$apt/status"
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [arch=$(echo "$*" | tr ' ' ,) signed-by=$key] $mirror $release main" > "$apt/sources.list"
    cat > "$apt/apt.conf" <<END
Dir::State "$apt"; Dir::State::Lists "$apt/lists"; Dir::State::status "$apt/status";
Dir::Cache "$apt"; Dir::Cache::Archives "$apt/archives";
Dir::Etc::SourceList "$apt/sources.list"; Dir::Etc::SourceParts "-";
Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";
APT::Architecture "amd64"; APT::Architectures { $(printf '"%s"; ' "$@")}; APT::Sandbox::User "root";
Acquire::Languages "none";
END
    export APT_CONFIG="$apt/apt.conf"
    apt-get update -qq
}
