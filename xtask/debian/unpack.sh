#!/bin/sh
# unpack.sh FOLDER PACKAGE LEFT_OUT PROGRAM...
#
# Unpacks a package of Debian 13 and the packages that it needs into FOLDER/root, without installing anything. Packages
# whose file names match the regular expression LEFT_OUT are left out. The packages are from the mirror that apt on this
# machine uses. Each PROGRAM is a path in FOLDER/root.
set -eu
folder=$1
package=$2
left_out=$3
shift 3
apt=$folder/apt
rm -rf "$folder"
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$folder/root"
: > "$apt/status"

# The first mirror in the files of apt. Debian's key is in the same place on every Debian.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
    grep -v '^#' | grep -o 'https\{0,1\}://[^ ]*/debian/\{0,1\}\( \|$\)' | head -n 1 | tr -d ' ')
[ -n "$mirror" ] || { echo "apt on this machine has no mirror of Debian" >&2; exit 1; }
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [arch=amd64 signed-by=$key] $mirror trixie main" > "$apt/sources.list"
cat > "$apt/apt.conf" <<END
Dir::State "$apt"; Dir::State::Lists "$apt/lists"; Dir::State::status "$apt/status";
Dir::Cache "$apt"; Dir::Cache::Archives "$apt/archives";
Dir::Etc::SourceList "$apt/sources.list"; Dir::Etc::SourceParts "-";
Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "/dev/null";
APT::Architecture "amd64"; APT::Architectures { "amd64"; }; APT::Sandbox::User "root"; Acquire::Languages "none";
END
export APT_CONFIG="$apt/apt.conf"
apt-get update -qq
apt-get install -y -qq --no-install-recommends --download-only "$package" > "$apt/log"

for file in "$apt"/archives/*.deb; do
    if echo "${file##*/}" | grep -Eq "$left_out"; then continue; fi
    dpkg-deb --fsys-tarfile "$file" | tar -x -C "$folder/root" --exclude='./usr/share/doc' \
        --exclude='./usr/share/locale' --exclude='./usr/share/man'
done
rm -rf "$apt"

# The programs need a newer C library than the machine may have, so they are started by their own dynamic linker.
libraries=$folder/root/usr/lib/x86_64-linux-gnu
for program in "$@"; do
    path=$folder/root/$program
    mv "$path" "$path.real"
    cat > "$path" <<END
#!/bin/sh
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" --argv0 "\$0" "\$0.real" "\$@"
END
    chmod +x "$path"
done
