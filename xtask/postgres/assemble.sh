#!/bin/sh
# Unpacks PostgreSQL 17 with pgvector from Debian's packages into the folder $1/root, without installing anything.
# The packages are those of Debian 13, from the mirror that apt on this machine uses.
set -eu
folder=$1
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
apt-get install -y -qq --no-install-recommends --download-only postgresql-17-pgvector > "$apt/log"

# The server with its libraries. Its compiler for queries (LLVM) and its scripts (Perl) are not needed.
for package in "$apt"/archives/*.deb; do
    case ${package##*/} in
        *_all.deb | perl* | libperl* | libllvm* | libz3* | postgresql-client* | procps* | passwd* | openssl_*) ;;
        *) dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder/root" --exclude='./usr/share/doc' \
            --exclude='./usr/share/locale' --exclude='./usr/share/man' ;;
    esac
done
rm -rf "$apt"

# The programs need a newer C library than the machine may have, so they are started by their own dynamic linker.
libraries=$folder/root/usr/lib/x86_64-linux-gnu
programs=$folder/root/usr/lib/postgresql/17/bin
for program in initdb postgres; do
    mv "$programs/$program" "$programs/$program.real"
    cat > "$programs/$program" <<END
#!/bin/sh
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" --argv0 "\$0" "\$0.real" "\$@"
END
    chmod +x "$programs/$program"
done
