# Unpacks a toolchain for 64-bit ARM Linux from Debian's packages into the folder $1, without installing anything:
# in $1/rust, a Rust compiler with the standard libraries of this machine and of ARM, from the first Debian release
# whose compiler has at least the version $2; in $1/c, a C compiler for ARM from the release of this machine; and
# $1/qemu-aarch64, which runs programs for ARM. This script follows debian/apt.sh.
set -eu
folder=$1
oldest=$2
target=aarch64-unknown-linux-gnu
rm -rf "$folder"
mkdir -p "$folder/rust" "$folder/c"

this_release=$(. /etc/os-release && echo "${VERSION_CODENAME:-trixie}")

unpack() {
    dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --exclude='./usr/share/*'
}

version() {
    apt-cache policy "$1" | sed -n 's/^ *Candidate: //p'
}

# Both standard libraries must be of the same version as the compiler.
found=
for release in trixie forky sid; do
    use_release "$folder/apt" "$release" amd64 arm64
    compiler=$(version rustc:amd64)
    if dpkg --compare-versions "$compiler" ge "$oldest" && [ "$compiler" = "$(version libstd-rust-dev:arm64)" ]; then
        found=$release
        break
    fi
done
[ -n "$found" ] || { echo "no release of Debian has Rust $oldest for both architectures" >&2; exit 1; }
apt-get install -y -qq --no-install-recommends --download-only libstd-rust-dev:amd64 > "$apt/log"
(cd "$apt/archives" && apt-get download -qq rustc:amd64 libstd-rust-dev:arm64 qemu-user:amd64)
for package in "$apt"/archives/*.deb; do
    case ${package##*/} in
        qemu-user_*) dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder" --strip-components=3 ./usr/bin/qemu-aarch64 ;;
        *_arm64.deb) dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder/rust" --wildcards "./usr/lib/rustlib/$target/*" ;;
        *) unpack "$package" "$folder/rust" ;;
    esac
done

# The compiler needs a newer C library than the machine may have, so it is started by its own dynamic linker.
libraries=$folder/rust/usr/lib/x86_64-linux-gnu
for program in rustc rustdoc; do
    file=$folder/rust/usr/bin/$program
    mv "$file" "$file.real"
    cat > "$file" <<END
#!/bin/sh
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$file.real" "\$@"
END
    chmod +x "$file"
done

# The C compiler uses the C library of this machine, so its packages are those of the release of this machine.
use_release "$folder/apt" "$this_release" amd64 arm64
apt-get install -y -qq --no-install-recommends --download-only gcc-aarch64-linux-gnu libc6-dev-arm64-cross > "$apt/log"
for package in "$apt"/archives/*.deb; do
    case ${package##*/} in
        *aarch64* | *cross* | libbinutils_* | libctf* | libgmp* | libisl* | libjansson* | libmpc* | libmpfr* | libsframe* | libzstd*)
            unpack "$package" "$folder/c" ;;
    esac
done
gcc=$(find "$folder/c/usr/bin" -name 'aarch64-linux-gnu-gcc-[0-9]*' | head -n 1)
cat > "$folder/gcc" <<END
#!/bin/sh
export PATH="$folder/c/usr/bin:\$PATH" LD_LIBRARY_PATH="$folder/c/usr/lib/x86_64-linux-gnu"
exec "$gcc" --sysroot="$folder/c" "\$@"
END
cat > "$folder/ar" <<END
#!/bin/sh
export LD_LIBRARY_PATH="$folder/c/usr/lib/x86_64-linux-gnu"
exec "$folder/c/usr/bin/aarch64-linux-gnu-ar" "\$@"
END
chmod +x "$folder/gcc" "$folder/ar"
rm -rf "$apt"
