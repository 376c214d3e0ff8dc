// g++ -std=c++17 classify.cpp -I$ONNXRUNTIME_HOME/include -L$ONNXRUNTIME_HOME/lib -lonnxruntime -o classify
// ./classify model.onnx photo.ppm
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    std::vector<uint8_t> pixels;  // RGB, row by row
    int64_t width, height;
};

Picture read_ppm(const char* path) {  // any decoder that gives RGB bytes does
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, white = 0;
    file >> magic >> width >> height >> white;
    file.get();
    if (!file || magic != "P6" || white != 255) throw std::runtime_error(std::string(path) + ": is no PPM of 8 bits");
    Picture picture{std::vector<uint8_t>(width * height * 3), width, height};
    file.read(reinterpret_cast<char*>(picture.pixels.data()), picture.pixels.size());
    if (!file) throw std::runtime_error(std::string(path) + ": ends too early");
    return picture;
}

int main(int count, char** arguments) try {
    if (count != 3) throw std::runtime_error("give model.onnx and photo.ppm");
    Ort::Env env;
    std::string model = arguments[1];
    Ort::Session session(env, std::basic_string<ORTCHAR_T>(model.begin(), model.end()).c_str(), Ort::SessionOptions{});
    Picture picture = read_ppm(arguments[2]);

    std::vector<int64_t> shape{1, picture.height, picture.width, 3};
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto image = Ort::Value::CreateTensor<uint8_t>(
        memory, picture.pixels.data(), picture.pixels.size(), shape.data(), shape.size());
    const char* inputs[] = {"image"};
    const char* outputs[] = {"logits", "maps"};
    auto values = session.Run(Ort::RunOptions{nullptr}, inputs, &image, 1, outputs, 2);

    const float* logits = values[0].GetTensorData<float>();
    auto classes = values[0].GetTensorTypeAndShapeInfo().GetElementCount();
    auto top = std::max_element(logits, logits + classes) - logits;
    double sum = 0;  // softmax; of independent labels 1 / (1 + exp(-logit))
    for (size_t k = 0; k < classes; k++) sum += std::exp(logits[k] - logits[top]);
    std::printf("class %td, probability %.4f\nmaps", top, 1 / sum);
    auto sides = values[1].GetTensorTypeAndShapeInfo().GetShape();
    for (size_t i = 0; i < sides.size(); i++) std::printf(i ? " x %lld" : " %lld", static_cast<long long>(sides[i]));
    std::printf("\n");
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
