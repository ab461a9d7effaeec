# unpack.sh FOLDER PACKAGE LEFT_OUT PROGRAM...
#
# Unpacks a package of Debian 13 and the packages that it needs into FOLDER/root, without installing anything. Packages
# whose file names match the regular expression LEFT_OUT are left out. The packages are from the mirror that apt on this
# machine uses. Each PROGRAM is a path in FOLDER/root. This script follows apt.sh.
set -eu
folder=$1
package=$2
left_out=$3
shift 3
rm -rf "$folder"
mkdir -p "$folder/root"
use_release "$folder/apt" trixie amd64
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
